-- A record that was read as a sample, also one that repeats an earlier record.
CREATE OR REPLACE VIEW stg_origins AS
SELECT
    snapshot::VARCHAR AS snapshot,
    id::VARCHAR AS id,
    source::VARCHAR AS source,
    file::VARCHAR AS file,
    position::BIGINT AS position,
    line::BIGINT AS line,
    is_first::BOOLEAN AS is_first
FROM origins;
