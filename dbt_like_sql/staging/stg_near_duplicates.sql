-- A sample that resembles an earlier one, with that one and the estimated Jaccard similarity of their texts.
CREATE OR REPLACE VIEW stg_near_duplicates AS
SELECT
    snapshot::VARCHAR AS snapshot,
    id::VARCHAR AS id,
    partner_id::VARCHAR AS partner_id,
    score::DOUBLE AS similarity
FROM near_duplicates;
