-- A step of a run, also of one that failed: its time and attempts, how large the pool was, what was made.
-- `seconds` is the time of all attempts that ended. `bytes` is known of finished runs.
CREATE OR REPLACE VIEW run_costs AS
WITH by_step AS (
    SELECT
        run_id,
        step,
        min(started_at) AS step_started_at,
        count(*) AS attempts,
        count(*) FILTER (WHERE status = 'failed') AS failed_attempts,
        sum(seconds) AS seconds,
        max_by(status, attempt) AS status,
        max_by(output_key, attempt) AS output_key
    FROM stg_steps
    GROUP BY run_id, step
),

pools AS (
    SELECT
        by_step.run_id,
        snapshot.pool_samples
    FROM by_step
    INNER JOIN stg_snapshots AS snapshot ON by_step.output_key = snapshot.snapshot
    WHERE by_step.step = 'raw_pool'
)

SELECT
    run.run_id,
    run.started_at,
    by_step.step,
    by_step.step_started_at,
    by_step.attempts,
    by_step.failed_attempts,
    by_step.status,
    by_step.seconds,
    output.bytes,
    finished.run_id IS NOT NULL AS run_finished,
    coalesce(snapshot.pool_samples, pools.pool_samples) AS pool_samples,
    CASE WHEN by_step.step = 'embeddings' THEN finished.embedded END AS samples_embedded
FROM stg_runs AS run
INNER JOIN by_step ON run.run_id = by_step.run_id
LEFT JOIN stg_run_outputs AS finished ON run.run_id = finished.run_id
LEFT JOIN stg_snapshots AS snapshot ON finished.snapshot = snapshot.snapshot
LEFT JOIN pools ON run.run_id = pools.run_id
LEFT JOIN stg_provenance AS output ON by_step.run_id = output.run_id AND by_step.step = output.asset;
