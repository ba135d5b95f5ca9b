-- What NovelSelect knew of a sample of the pool at the end: its last score, or an upper bound of it.
CREATE OR REPLACE VIEW stg_remaining AS
SELECT
    selection::VARCHAR AS selection,
    id::VARCHAR AS id,
    score::DOUBLE AS score,
    after_picks::BIGINT AS after_picks,
    is_exact::BOOLEAN AS is_exact
FROM remaining;
