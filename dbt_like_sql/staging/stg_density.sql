-- A sample's density within a pool; the factor is larger where the pool is denser.
CREATE OR REPLACE VIEW stg_density AS
SELECT
    density::VARCHAR AS density,
    id::VARCHAR AS id,
    mean_squared_distance::DOUBLE AS mean_squared_distance,
    density_factor::DOUBLE AS density_factor
FROM density;
