-- A selection with its settings.
CREATE OR REPLACE VIEW stg_selections AS
SELECT
    selection,
    snapshot,
    vectors,
    density,
    folder,
    strategy,
    k AS picks,
    seed,
    density_power,
    proximity_power,
    options
FROM selections;
