-- The vectors of a pool, with the model that made them.
CREATE OR REPLACE VIEW stg_embeddings AS
SELECT
    vectors,
    snapshot,
    folder,
    model,
    revision,
    max_tokens,
    dtype,
    dimension,
    samples
FROM embeddings;
