-- A sample's novelty within a pool.
CREATE OR REPLACE VIEW stg_novelty AS
SELECT
    sample_novelty::VARCHAR AS novelty_key,
    id::VARCHAR AS id,
    novelty::DOUBLE AS novelty
FROM novelty;
