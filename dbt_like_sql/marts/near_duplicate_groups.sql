-- A group of near-duplicates of a snapshot: its first sample, found by following partners, and how many it has.
CREATE OR REPLACE VIEW near_duplicate_groups AS
-- UNION drops what was found before, so that even a damaged table with a circle comes to an end.
WITH RECURSIVE followed AS (
    SELECT
        snapshot,
        id,
        partner_id AS first_id
    FROM stg_near_duplicates
    UNION
    SELECT
        followed.snapshot,
        followed.id,
        earlier.partner_id AS first_id
    FROM followed
    INNER JOIN stg_near_duplicates AS earlier
        ON followed.snapshot = earlier.snapshot AND followed.first_id = earlier.id
),

members AS (
    SELECT
        followed.snapshot,
        followed.first_id,
        followed.id,
        near_duplicate.similarity,
        near_duplicate.found_by
    FROM followed
    INNER JOIN stg_near_duplicates AS near_duplicate
        ON followed.snapshot = near_duplicate.snapshot AND followed.id = near_duplicate.id
    LEFT JOIN stg_near_duplicates AS earlier
        ON followed.snapshot = earlier.snapshot AND followed.first_id = earlier.id
    WHERE earlier.id IS NULL
),

groups AS (
    SELECT
        members.snapshot,
        members.first_id,
        count(*) + 1 AS size,
        min(members.similarity) AS lowest_score,
        max(members.similarity) AS highest_score,
        list(DISTINCT members.found_by ORDER BY members.found_by) AS found_by,
        list(DISTINCT sample.source ORDER BY sample.source) AS sources_of_others
    FROM members
    INNER JOIN stg_samples AS sample ON members.snapshot = sample.snapshot AND members.id = sample.id
    GROUP BY members.snapshot, members.first_id
)

SELECT
    groups.snapshot,
    groups.first_id,
    groups.size,
    groups.lowest_score,
    groups.highest_score,
    groups.found_by,
    groups.sources_of_others,
    sample.source AS first_source,
    sample.file AS first_file,
    sample.position AS first_position,
    snapshot.near_duplicates_dropped AS others_dropped
FROM groups
INNER JOIN stg_samples AS sample ON groups.snapshot = sample.snapshot AND groups.first_id = sample.id
INNER JOIN stg_snapshots AS snapshot ON groups.snapshot = snapshot.snapshot;
