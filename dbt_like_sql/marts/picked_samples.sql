-- A sample that a selection picked: its first pick, and how often it was picked.
CREATE OR REPLACE VIEW picked_samples AS
SELECT
    selection,
    id,
    rank,
    score,
    runner_up_id,
    margin,
    nearest_pick_id,
    nearest_distance,
    quality,
    count(*) OVER (PARTITION BY selection, id) AS times_picked
FROM picks
QUALIFY row_number() OVER (PARTITION BY selection, id ORDER BY rank) = 1;
