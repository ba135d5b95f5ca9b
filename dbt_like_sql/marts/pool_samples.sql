-- Files of earlier releases have no `found_by`: they compared texts alone.
{{ config(materialized='view') }}

SELECT
    sample.snapshot,
    sample.id,
    sample.source,
    sample.file,
    sample.position,
    sample.line,
    sample.turns,
    sample.characters,
    sample.tokens,
    near_duplicate.partner_id AS near_duplicate_of,
    near_duplicate.score AS near_duplicate_score,
    CASE WHEN near_duplicate.id IS NOT NULL THEN coalesce(near_duplicate.found_by, 'minhash') END AS near_duplicate_by,
    near_duplicate.id IS NULL OR NOT snapshot.near_duplicates_dropped AS in_pool
FROM {{ source('lineage', 'samples') }} AS sample
INNER JOIN {{ source('lineage', 'snapshots') }} AS snapshot ON sample.snapshot = snapshot.snapshot
LEFT JOIN {{ source('lineage', 'near_duplicates') }} AS near_duplicate
    ON sample.snapshot = near_duplicate.snapshot AND sample.id = near_duplicate.id
