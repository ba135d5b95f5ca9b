{{ config(materialized='view') }}

SELECT
    run.run_id,
    runs.started_at,
    measure.set_name,
    measure.measure,
    measure.size AS set_size,
    measure.value AS measured,
    measure.low,
    measure.high,
    lag(run.run_id) OVER before_it AS previous_run_id,
    lag(measure.size) OVER before_it AS previous_set_size,
    lag(measure.value) OVER before_it AS previous_measured,
    measure.value - lag(measure.value) OVER before_it AS change,
    (measure.value - lag(measure.value) OVER before_it)
    / nullif(abs(lag(measure.value) OVER before_it), 0) AS relative_change
FROM {{ source('lineage', 'run_outputs') }} AS run
INNER JOIN {{ source('lineage', 'runs') }} AS runs ON run.run_id = runs.run_id
INNER JOIN {{ source('lineage', 'set_measures') }} AS measure ON run.report = measure.report
WINDOW before_it AS (PARTITION BY measure.set_name, measure.measure ORDER BY runs.started_at, runs.run_id)
