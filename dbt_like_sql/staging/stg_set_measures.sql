-- A measure of a set of a report, with its interval.
CREATE OR REPLACE VIEW stg_set_measures AS
SELECT
    report,
    selection,
    set_name,
    measure,
    size AS set_size,
    value AS measured,
    low,
    high
FROM set_measures;
