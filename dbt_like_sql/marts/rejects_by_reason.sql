-- A reason for rejecting records of a source: their number, their share of all records read, an example.
CREATE OR REPLACE VIEW rejects_by_reason AS
WITH read_by_source AS (
    SELECT
        snapshot,
        source,
        sum(records_read)::BIGINT AS records_read
    FROM stg_source_files
    GROUP BY snapshot, source
),

counted AS (
    SELECT
        snapshot,
        source,
        reason,
        count(*) AS rejects,
        min_by(file, (file, position)) AS example_file,
        min_by(position, (file, position)) AS example_position,
        min_by(line, (file, position)) AS example_line,
        min_by(detail, (file, position)) AS example_detail
    FROM stg_rejects
    GROUP BY snapshot, source, reason
)

SELECT
    counted.snapshot,
    counted.source,
    counted.reason,
    counted.rejects,
    read_by_source.records_read,
    counted.example_file,
    counted.example_position,
    counted.example_line,
    counted.example_detail,
    counted.rejects / nullif(read_by_source.records_read, 0) AS share_of_read
FROM counted
LEFT JOIN read_by_source
    ON counted.snapshot = read_by_source.snapshot AND counted.source = read_by_source.source;
