-- A sample that a finished run or the finished run before it picked: it entered, left or stayed.
-- Ranks are those of first picks. The first run has no row, nor has one whose data gc removed. A filter on run_id
-- reaches the Parquet files.
CREATE OR REPLACE VIEW selection_diff AS
WITH run_pairs AS (
    SELECT
        run_id,
        selection,
        lag(run_id) OVER (ORDER BY started_at, run_id) AS previous_run_id,
        lag(selection) OVER (ORDER BY started_at, run_id) AS previous_selection
    FROM stg_run_outputs
    WHERE data_removed_at IS NULL
),

both_ranks AS (
    SELECT
        run_pairs.run_id,
        run_pairs.previous_run_id,
        pick.id,
        pick.rank,
        NULL::BIGINT AS previous_rank
    FROM run_pairs
    INNER JOIN stg_picks AS pick ON run_pairs.selection = pick.selection
    WHERE run_pairs.previous_run_id IS NOT NULL
    UNION ALL
    SELECT
        run_pairs.run_id,
        run_pairs.previous_run_id,
        pick.id,
        NULL::BIGINT AS rank,
        pick.rank AS previous_rank
    FROM run_pairs
    INNER JOIN stg_picks AS pick ON run_pairs.previous_selection = pick.selection
),

first_ranks AS (
    SELECT
        run_id,
        previous_run_id,
        id,
        min(rank) AS rank,
        min(previous_rank) AS previous_rank
    FROM both_ranks
    GROUP BY run_id, previous_run_id, id
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
FROM first_ranks;
