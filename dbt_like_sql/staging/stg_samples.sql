-- A distinct sample of a snapshot, near-duplicates included. Filters on snapshot and id reach the Parquet files.
CREATE OR REPLACE VIEW stg_samples AS
SELECT
    snapshot::VARCHAR AS snapshot,
    id::VARCHAR AS id,
    source::VARCHAR AS source,
    file::VARCHAR AS file,
    position::BIGINT AS position,
    line::BIGINT AS line,
    form::VARCHAR AS form,
    turns::INTEGER AS turns,
    characters::BIGINT AS characters,
    tokens::BIGINT AS tokens,
    text::VARCHAR AS text
FROM samples;
