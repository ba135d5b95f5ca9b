-- Ranks are those of first picks. The first run has no row, nor has one whose data gc removed. A filter on run_id
-- reaches the Parquet files.
{{ config(materialized='view') }}

WITH run_pairs AS (
    SELECT
        run.run_id,
        lag(run.run_id) OVER (ORDER BY runs.started_at, runs.run_id) AS previous_run_id,
        unnest([run.selection, lag(run.selection) OVER (ORDER BY runs.started_at, runs.run_id)]) AS selection,
        unnest([FALSE, TRUE]) AS is_previous
    FROM {{ source('lineage', 'run_outputs') }} AS run
    INNER JOIN {{ source('lineage', 'runs') }} AS runs ON run.run_id = runs.run_id
    WHERE run.data_removed_at IS NULL
),

first_ranks AS (
    SELECT
        run_pairs.run_id,
        run_pairs.previous_run_id,
        pick.id,
        min(pick.rank) FILTER (WHERE NOT run_pairs.is_previous) AS rank,
        min(pick.rank) FILTER (WHERE run_pairs.is_previous) AS previous_rank
    FROM run_pairs
    INNER JOIN {{ source('lineage', 'picks') }} AS pick ON run_pairs.selection = pick.selection
    WHERE run_pairs.previous_run_id IS NOT NULL
    GROUP BY ALL
)

SELECT
    run_id,
    previous_run_id,
    id,
    rank,
    previous_rank,
    CASE
        WHEN previous_rank IS NULL THEN 'entered'
        WHEN rank IS NULL THEN 'left'
        ELSE 'stayed'
    END AS change
FROM first_ranks
