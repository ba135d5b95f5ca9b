-- An output that a run made or used: its size on disk and its record.
CREATE OR REPLACE VIEW stg_provenance AS
SELECT
    run_id,
    asset,
    output AS output_key,
    bytes,
    record
FROM provenance;
