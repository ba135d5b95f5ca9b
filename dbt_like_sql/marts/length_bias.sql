-- A ratio over 1 means that the selection prefers longer samples.
{{ config(materialized='table') }}

WITH lengths AS (
    SELECT
        snapshot,
        id,
        in_pool,
        unnest(['tokens', 'turns', 'characters']) AS unit,
        unnest([tokens, turns, characters]) AS length
    FROM {{ ref('pool_samples') }}
),

in_pools AS (
    SELECT
        snapshot,
        unit,
        median(length) AS pool_median,
        avg(length) AS pool_mean
    FROM lengths
    WHERE in_pool
    GROUP BY ALL
),

in_subsets AS (
    SELECT
        pick.selection,
        lengths.unit,
        median(lengths.length) AS subset_median,
        avg(lengths.length) AS subset_mean
    FROM {{ ref('picked_samples') }} AS pick
    INNER JOIN {{ source('lineage', 'selections') }} AS selection ON pick.selection = selection.selection
    INNER JOIN lengths ON selection.snapshot = lengths.snapshot AND pick.id = lengths.id
    GROUP BY ALL
)

SELECT
    run.run_id,
    runs.started_at,
    in_pools.unit,
    in_pools.pool_median,
    in_subsets.subset_median,
    in_subsets.subset_median / nullif(in_pools.pool_median, 0) AS median_ratio,
    in_pools.pool_mean,
    in_subsets.subset_mean,
    in_subsets.subset_mean / nullif(in_pools.pool_mean, 0) AS mean_ratio
FROM {{ source('lineage', 'run_outputs') }} AS run
INNER JOIN {{ source('lineage', 'runs') }} AS runs ON run.run_id = runs.run_id
INNER JOIN in_pools ON run.snapshot = in_pools.snapshot
INNER JOIN in_subsets ON run.selection = in_subsets.selection AND in_pools.unit = in_subsets.unit
ORDER BY runs.started_at, runs.run_id, in_pools.unit
