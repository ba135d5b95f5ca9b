{{ config(materialized='view') }}

WITH read_by_source AS (
    SELECT
        snapshot,
        source,
        sum(read)::BIGINT AS records_read
    FROM {{ source('lineage', 'source_files') }}
    GROUP BY ALL
)

SELECT
    reject.snapshot,
    reject.source,
    reject.reason,
    count(*) AS rejects,
    read_by_source.records_read,
    min_by(reject.file, (reject.file, reject.position)) AS example_file,
    min_by(reject.position, (reject.file, reject.position)) AS example_position,
    min_by(reject.line, (reject.file, reject.position)) AS example_line,
    min_by(reject.detail, (reject.file, reject.position)) AS example_detail,
    count(*) / nullif(read_by_source.records_read, 0) AS share_of_read
FROM {{ source('lineage', 'rejects') }} AS reject
LEFT JOIN read_by_source ON reject.snapshot = read_by_source.snapshot AND reject.source = read_by_source.source
GROUP BY reject.snapshot, reject.source, reject.reason, read_by_source.records_read
