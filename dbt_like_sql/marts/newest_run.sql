-- The newest finished run: one row, or none.
CREATE OR REPLACE VIEW newest_run AS
SELECT
    run_id,
    started_at,
    snapshot,
    vectors,
    density,
    novelty_key,
    selection,
    report
FROM stg_run_outputs
ORDER BY started_at DESC, run_id DESC
LIMIT 1;
