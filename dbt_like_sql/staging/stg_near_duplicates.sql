-- A sample that resembles one that was looked at before it, with that one and how similar they are.
CREATE OR REPLACE VIEW stg_near_duplicates AS
SELECT
    snapshot::VARCHAR AS snapshot,
    id::VARCHAR AS id,
    partner_id::VARCHAR AS partner_id,
    score::DOUBLE AS similarity,
    coalesce(found_by, 'minhash')::VARCHAR AS found_by
FROM near_duplicates;
