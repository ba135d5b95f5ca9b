-- A file of a pool, with its counts: read = kept + duplicates + rejects + unread.
CREATE OR REPLACE VIEW stg_source_files AS
SELECT
    snapshot,
    source,
    file,
    format AS file_format,
    form,
    sha256,
    complete AS is_complete,
    read AS records_read,
    kept AS pool_samples,
    duplicates,
    rejects
FROM source_files;
