{{ config(materialized='view') }}

SELECT
    run.run_id,
    runs.started_at,
    run.snapshot,
    run.vectors,
    run.density,
    run.novelty AS novelty_key,
    run.selection,
    run.report
FROM {{ source('lineage', 'run_outputs') }} AS run
INNER JOIN {{ source('lineage', 'runs') }} AS runs ON run.run_id = runs.run_id
ORDER BY runs.started_at DESC, runs.run_id DESC
LIMIT 1
