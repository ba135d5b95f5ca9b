-- A run, also one that failed half way.
CREATE OR REPLACE VIEW stg_runs AS
SELECT
    run_id,
    started_at,
    settings,
    package_version,
    git_revision,
    python AS python_version,
    platform
FROM runs;
