-- A rejected record, with the reason.
CREATE OR REPLACE VIEW stg_rejects AS
SELECT
    snapshot::VARCHAR AS snapshot,
    source::VARCHAR AS source,
    file::VARCHAR AS file,
    position::BIGINT AS position,
    line::BIGINT AS line,
    reason::VARCHAR AS reason,
    detail::VARCHAR AS detail
FROM rejects;
