{{ config(materialized='view') }}

-- From the first samples of groups down, so that each sample is found once, and a circle of a damaged table never.
WITH RECURSIVE followed AS (
    SELECT
        near_duplicate.snapshot,
        near_duplicate.id,
        near_duplicate.partner_id AS first_id
    FROM {{ source('lineage', 'near_duplicates') }} AS near_duplicate
    ANTI JOIN {{ source('lineage', 'near_duplicates') }} AS earlier
        ON near_duplicate.snapshot = earlier.snapshot AND near_duplicate.partner_id = earlier.id
    UNION
    SELECT
        later.snapshot,
        later.id,
        followed.first_id
    FROM followed
    INNER JOIN {{ source('lineage', 'near_duplicates') }} AS later
        ON followed.snapshot = later.snapshot AND followed.id = later.partner_id
),

-- Grouped before the first samples are joined: in one join, DuckDB may pair all samples of a snapshot.
grouped AS (
    SELECT
        followed.snapshot,
        followed.first_id,
        count(*) + 1 AS size,
        min(other.near_duplicate_score) AS lowest_score,
        max(other.near_duplicate_score) AS highest_score,
        list(DISTINCT other.near_duplicate_by ORDER BY other.near_duplicate_by) AS found_by,
        list(DISTINCT other.source ORDER BY other.source) AS sources_of_others,
        bool_or(NOT other.in_pool) AS others_dropped
    FROM followed
    INNER JOIN {{ ref('pool_samples') }} AS other ON followed.snapshot = other.snapshot AND followed.id = other.id
    GROUP BY ALL
)

SELECT
    grouped.snapshot,
    grouped.first_id,
    grouped.size,
    grouped.lowest_score,
    grouped.highest_score,
    grouped.found_by,
    grouped.sources_of_others,
    first_sample.source AS first_source,
    first_sample.file AS first_file,
    first_sample.position AS first_position,
    grouped.others_dropped
FROM grouped
INNER JOIN {{ source('lineage', 'samples') }} AS first_sample
    ON grouped.snapshot = first_sample.snapshot AND grouped.first_id = first_sample.id
