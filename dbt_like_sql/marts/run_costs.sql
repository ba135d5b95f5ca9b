-- `seconds` is the time of all attempts that ended. `bytes` is known of finished runs.
{{ config(materialized='view') }}

WITH by_step AS (
    SELECT
        run_id,
        step,
        min(started_at) AS started_at,
        count(*) AS attempts,
        count(*) FILTER (WHERE status = 'failed') AS failed_attempts,
        max_by(status, attempt) AS status,
        sum(epoch(ended_at - started_at)) AS seconds,
        max_by(output, attempt) AS output
    FROM {{ source('lineage', 'steps') }}
    GROUP BY ALL
)

SELECT
    runs.run_id,
    runs.started_at,
    by_step.step,
    by_step.started_at AS step_started_at,
    by_step.attempts,
    by_step.failed_attempts,
    by_step.status,
    by_step.seconds,
    output.bytes,
    finished.run_id IS NOT NULL AS run_finished,
    pool.kept AS pool_samples,
    CASE WHEN by_step.step = 'embeddings' THEN finished.embedded END AS samples_embedded
FROM {{ source('lineage', 'runs') }} AS runs
INNER JOIN by_step ON runs.run_id = by_step.run_id
LEFT JOIN {{ source('lineage', 'run_outputs') }} AS finished ON runs.run_id = finished.run_id
LEFT JOIN by_step AS pool_read ON runs.run_id = pool_read.run_id AND pool_read.step = 'raw_pool'
LEFT JOIN {{ source('lineage', 'snapshots') }} AS pool ON coalesce(finished.snapshot, pool_read.output) = pool.snapshot
LEFT JOIN
    {{ source('lineage', 'provenance') }} AS output
    ON by_step.run_id = output.run_id AND by_step.step = output.asset
