-- A sample that is picked several times counts once in `subset_samples`. Shares of a pool or subset whose files are
-- gone are empty.
{{ config(materialized='table') }}

WITH sources AS (
    SELECT DISTINCT
        snapshot,
        source
    FROM {{ source('lineage', 'source_files') }}
),

in_pools AS (
    SELECT
        snapshot,
        source,
        count(*) AS samples,
        sum(tokens)::BIGINT AS tokens
    FROM {{ ref('pool_samples') }}
    WHERE in_pool
    GROUP BY ALL
),

in_subsets AS (
    SELECT
        pick.selection,
        sample.source,
        count(*) AS samples,
        sum(sample.tokens)::BIGINT AS tokens
    FROM {{ ref('picked_samples') }} AS pick
    INNER JOIN {{ source('lineage', 'selections') }} AS selection ON pick.selection = selection.selection
    INNER JOIN
        {{ source('lineage', 'samples') }} AS sample
        ON selection.snapshot = sample.snapshot AND pick.id = sample.id
    GROUP BY ALL
),

counted AS (
    SELECT
        run.run_id,
        runs.started_at,
        run.snapshot,
        run.selection,
        sources.source,
        coalesce(in_pools.samples, 0) AS pool_samples,
        coalesce(in_pools.tokens, 0) AS pool_tokens,
        coalesce(in_subsets.samples, 0) AS subset_samples,
        coalesce(in_subsets.tokens, 0) AS subset_tokens
    FROM {{ source('lineage', 'run_outputs') }} AS run
    INNER JOIN {{ source('lineage', 'runs') }} AS runs ON run.run_id = runs.run_id
    INNER JOIN sources ON run.snapshot = sources.snapshot
    LEFT JOIN in_pools ON sources.snapshot = in_pools.snapshot AND sources.source = in_pools.source
    LEFT JOIN in_subsets ON run.selection = in_subsets.selection AND sources.source = in_subsets.source
)

SELECT
    run_id,
    started_at,
    snapshot,
    selection,
    source,
    pool_samples,
    pool_tokens,
    pool_samples / nullif(sum(pool_samples) OVER (PARTITION BY run_id), 0) AS pool_share,
    subset_samples,
    subset_tokens,
    subset_samples / nullif(sum(subset_samples) OVER (PARTITION BY run_id), 0) AS subset_share,
    subset_share / nullif(pool_share, 0) AS share_ratio
FROM counted
ORDER BY started_at, run_id, source
