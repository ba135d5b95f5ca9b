-- The nearest pick of a sample of the pool. A pick is its own nearest pick.
CREATE OR REPLACE VIEW stg_covering AS
SELECT
    selection::VARCHAR AS selection,
    id::VARCHAR AS id,
    rank_1::BIGINT AS rank_1,
    distance_1::DOUBLE AS distance_1
FROM covering;
