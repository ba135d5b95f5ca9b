{{ config(materialized='view') }}

SELECT
    pick.selection,
    pick.id,
    pick.rank,
    eligibility.chosen_by,
    eligibility.eligible,
    pick.score,
    pick.runner_up_id,
    pick.margin,
    pick.nearest_pick_id,
    pick.nearest_distance,
    pick.quality,
    count(*) OVER (PARTITION BY pick.selection, pick.id) AS times_picked
FROM {{ source('lineage', 'picks') }} AS pick
LEFT JOIN
    {{ source('lineage', 'eligibility') }} AS eligibility
    ON pick.selection = eligibility.selection AND pick.rank = eligibility.rank
QUALIFY row_number() OVER (PARTITION BY pick.selection, pick.id ORDER BY pick.rank) = 1
