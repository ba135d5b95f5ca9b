-- An attempt at a step of a run.
CREATE OR REPLACE VIEW stg_steps AS
SELECT
    run_id,
    step,
    attempt,
    started_at,
    ended_at,
    status,
    output AS output_key,
    error,
    epoch(ended_at - started_at) AS seconds
FROM steps;
