-- A pick of a selection. The strategy duplicate picks a sample several times.
CREATE OR REPLACE VIEW stg_picks AS
SELECT
    selection::VARCHAR AS selection,
    rank::BIGINT AS rank,
    id::VARCHAR AS id,
    score::DOUBLE AS score,
    runner_up_id::VARCHAR AS runner_up_id,
    runner_up_score::DOUBLE AS runner_up_score,
    margin::DOUBLE AS margin,
    nearest_pick_rank::BIGINT AS nearest_pick_rank,
    nearest_pick_id::VARCHAR AS nearest_pick_id,
    nearest_distance::DOUBLE AS nearest_distance,
    quality::DOUBLE AS quality
FROM picks;
