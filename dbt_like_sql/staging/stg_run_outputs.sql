-- A finished run, with the keys of everything that it made.
CREATE OR REPLACE VIEW stg_run_outputs AS
SELECT
    run_outputs.run_id,
    runs.started_at,
    run_outputs.snapshot,
    run_outputs.vectors,
    run_outputs.density,
    run_outputs.novelty AS novelty_key,
    run_outputs.selection,
    run_outputs.report,
    run_outputs.embedded,
    run_outputs.data_removed_at
FROM run_outputs
INNER JOIN runs ON run_outputs.run_id = runs.run_id;
