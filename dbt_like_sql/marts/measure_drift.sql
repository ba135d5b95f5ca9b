-- A measure of a set of a finished run, and its change since the last run before it that has it.
CREATE OR REPLACE VIEW measure_drift AS
WITH compared AS (
    SELECT
        run.run_id,
        run.started_at,
        measured.set_name,
        measured.measure,
        measured.set_size,
        measured.measured,
        measured.low,
        measured.high,
        lag(run.run_id) OVER before_it AS previous_run_id,
        lag(measured.set_size) OVER before_it AS previous_set_size,
        lag(measured.measured) OVER before_it AS previous_measured
    FROM stg_run_outputs AS run
    INNER JOIN stg_set_measures AS measured ON run.report = measured.report
    WINDOW before_it AS (PARTITION BY measured.set_name, measured.measure ORDER BY run.started_at, run.run_id)
)

SELECT
    run_id,
    started_at,
    set_name,
    measure,
    set_size,
    measured,
    low,
    high,
    previous_run_id,
    previous_set_size,
    previous_measured,
    measured - previous_measured AS change,
    (measured - previous_measured) / nullif(abs(previous_measured), 0) AS relative_change
FROM compared;
