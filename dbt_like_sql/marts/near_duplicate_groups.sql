-- A group of near-duplicates of a snapshot: its first sample, found by following partners, and how many it has.
CREATE OR REPLACE VIEW near_duplicate_groups AS
-- UNION drops what was found before, so that even a damaged table with a circle comes to an end.
WITH RECURSIVE followed AS (
    SELECT
        snapshot,
        id,
        partner_id AS first_id
    FROM near_duplicates
    UNION
    SELECT
        followed.snapshot,
        followed.id,
        earlier.partner_id AS first_id
    FROM followed
    INNER JOIN near_duplicates AS earlier
        ON followed.snapshot = earlier.snapshot AND followed.first_id = earlier.id
)

SELECT
    first_sample.snapshot,
    followed.first_id,
    count(*) + 1 AS size,
    min(other.near_duplicate_score) AS lowest_score,
    max(other.near_duplicate_score) AS highest_score,
    list(DISTINCT other.near_duplicate_by ORDER BY other.near_duplicate_by) AS found_by,
    list(DISTINCT other.source ORDER BY other.source) AS sources_of_others,
    first_sample.source AS first_source,
    first_sample.file AS first_file,
    first_sample.position AS first_position,
    bool_or(NOT other.in_pool) AS others_dropped
FROM followed
INNER JOIN pool_samples AS other ON followed.snapshot = other.snapshot AND followed.id = other.id
INNER JOIN pool_samples AS first_sample
    ON followed.snapshot = first_sample.snapshot AND followed.first_id = first_sample.id
WHERE first_sample.near_duplicate_of IS NULL
GROUP BY ALL;
