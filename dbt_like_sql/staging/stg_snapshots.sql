-- A pool as it was read, with its counts: read = kept + duplicates + rejects + unread.
CREATE OR REPLACE VIEW stg_snapshots AS
SELECT
    snapshot,
    folder,
    read AS records_read,
    kept AS pool_samples,
    duplicates,
    rejects,
    near_duplicates,
    near_duplicates_dropped
FROM snapshots;
