-- `score` of a sample that was not picked is an upper bound unless `score_is_exact`. Give run_id as a constant: only
-- then does DuckDB read the Parquet files of that run alone. Ids are cut to 8 digits in `reason` only.
{{ config(materialized='view') }}

WITH folded AS (
    SELECT
        snapshot,
        id,
        count(*) AS duplicates_folded
    FROM {{ source('lineage', 'origins') }}
    WHERE NOT is_first
    GROUP BY ALL
),

-- A separate CTE: with chained joins, DuckDB would read the files of all runs.
closest_pick AS (
    SELECT
        covering.selection,
        covering.id,
        covering.distance_1,
        nearest.id AS nearest_id
    FROM {{ source('lineage', 'covering') }} AS covering
    INNER JOIN
        {{ source('lineage', 'picks') }} AS nearest
        ON covering.selection = nearest.selection AND covering.rank_1 = nearest.rank
),

joined AS (
    SELECT
        sample.*,
        run.run_id,
        run.selection,
        selection.strategy,
        pick.rank,
        pick.margin,
        pick.runner_up_id,
        pick.quality,
        remaining.is_exact,
        remaining.eligible_picks,
        remaining.barred_by,
        pick.chosen_by,
        pick.eligible,
        winner.score AS winning_score,
        density.density_factor,
        novelty.novelty,
        pick.id IS NOT NULL AS picked,
        CASE WHEN pick.id IS NULL THEN closest_pick.nearest_id ELSE pick.nearest_pick_id END AS nearest_pick_id,
        CASE WHEN pick.id IS NULL THEN closest_pick.distance_1 ELSE pick.nearest_distance END AS nearest_distance,
        coalesce(pick.times_picked, 0) AS times_picked,
        coalesce(pick.score, remaining.score) AS score,
        coalesce(pick.rank - 1, remaining.after_picks) AS after_picks,
        coalesce(folded.duplicates_folded, 0) AS duplicates_folded
    FROM {{ source('lineage', 'run_outputs') }} AS run
    INNER JOIN {{ source('lineage', 'selections') }} AS selection ON run.selection = selection.selection
    INNER JOIN {{ ref('pool_samples') }} AS sample ON run.snapshot = sample.snapshot
    LEFT JOIN {{ ref('picked_samples') }} AS pick ON run.selection = pick.selection AND sample.id = pick.id
    LEFT JOIN
        {{ source('lineage', 'remaining') }} AS remaining
        ON run.selection = remaining.selection AND sample.id = remaining.id
    LEFT JOIN
        {{ source('lineage', 'picks') }} AS winner
        ON run.selection = winner.selection AND remaining.after_picks + 1 = winner.rank
    LEFT JOIN closest_pick ON run.selection = closest_pick.selection AND sample.id = closest_pick.id
    LEFT JOIN {{ source('lineage', 'density') }} AS density ON run.density = density.density AND sample.id = density.id
    LEFT JOIN
        {{ source('lineage', 'novelty') }} AS novelty
        ON run.novelty = novelty.sample_novelty AND sample.id = novelty.id
    LEFT JOIN folded ON run.snapshot = folded.snapshot AND sample.id = folded.id
),

worded AS (
    SELECT
        *,
        CASE WHEN score IS NOT NULL THEN picked OR is_exact END AS score_is_exact,
        CASE
            WHEN rank % 100 NOT BETWEEN 11 AND 13 AND rank % 10 BETWEEN 1 AND 3
                THEN ['st', 'nd', 'rd'][rank % 10]
            ELSE 'th'
        END AS ordinal,
        concat(
            CASE chosen_by
                WHEN 'seed' THEN ': the first pick is drawn at random'
                WHEN 'drawn' THEN ': drawn at random'
                WHEN 'threshold' THEN ': the next that did not resemble an earlier pick'
                WHEN 'must_include' THEN ': required by the settings'
                WHEN 'kept' THEN ': kept from an earlier subset'
                WHEN 'exchange' THEN ' in an exchange at the end'
                ELSE CASE WHEN score IS NULL THEN concat('; no score is recorded (', strategy, ')') END
            END,
            ' with a score of ' || format('{:.5g}', score),
            '; ' || left(runner_up_id, 8) || ' came second by ' || format('{:.3g}', margin),
            '; ' || eligible || CASE WHEN eligible = 1 THEN ' sample was' ELSE ' samples were' END || ' eligible'
        ) AS how_it_won,
        '; its nearest pick is ' || left(nearest_pick_id, 8) || ', at cosine distance '
        || format('{:.4f}', nearest_distance) AS nearest_in_words,
        CASE WHEN times_picked > 1 THEN concat('; picked ', times_picked, ' times in all') END AS repeated,
        CASE WHEN score_is_exact THEN '' ELSE 'at most ' END || format('{:.5g}', score) AS score_in_words,
        '; ' || format('{:.5g}', winning_score) || ' won' AS who_won,
        '; ' || CASE barred_by
            WHEN 'must_exclude' THEN 'the settings exclude it'
            WHEN 'budget' THEN 'at the last pick it was longer than what was left of the token budget'
            WHEN 'cap' THEN 'at the last pick a cap on its label was reached'
            WHEN 'floor' THEN 'at the last pick what was left was reserved for the floors of other labels'
            WHEN 'partition' THEN 'it was not picked within its part of the pool'
        END AS ruled_out
    FROM joined
)

SELECT
    run_id,
    snapshot,
    selection,
    id,
    source,
    file,
    position,
    line,
    turns,
    tokens,
    in_pool,
    picked,
    rank,
    times_picked,
    score,
    score_is_exact,
    after_picks,
    margin,
    runner_up_id,
    chosen_by,
    eligible,
    eligible_picks,
    barred_by,
    nearest_pick_id,
    nearest_distance,
    density_factor,
    novelty,
    quality,
    duplicates_folded,
    near_duplicate_of,
    near_duplicate_score,
    near_duplicate_by,
    CASE
        WHEN picked
            THEN concat('picked ', rank, ordinal, how_it_won, repeated)
        WHEN NOT in_pool
            THEN concat(
                'left out: near-duplicate ',
                CASE WHEN near_duplicate_by = 'embedding' THEN 'by embedding (' ELSE '(' END,
                format('{:.2f}', near_duplicate_score),
                ') of ',
                left(near_duplicate_of, 8)
            )
        WHEN eligible_picks = 0
            THEN concat('not picked: eligible at no pick made by score', ruled_out, nearest_in_words)
        WHEN score IS NULL
            THEN concat('not picked; no score is recorded (', strategy, ')', ruled_out, nearest_in_words)
        ELSE concat(
            'not picked: its score after ',
            after_picks,
            CASE WHEN after_picks = 1 THEN ' pick was ' ELSE ' picks was ' END,
            score_in_words,
            who_won,
            ruled_out,
            nearest_in_words
        )
    END AS reason
FROM worded
