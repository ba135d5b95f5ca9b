-- The newest finished run: one row, or none.
CREATE OR REPLACE VIEW newest_run AS
SELECT
    run.run_id,
    runs.started_at,
    run.snapshot,
    run.vectors,
    run.density,
    run.novelty AS novelty_key,
    run.selection,
    run.report
FROM run_outputs AS run
INNER JOIN runs ON run.run_id = runs.run_id
ORDER BY runs.started_at DESC, runs.run_id DESC
LIMIT 1;
