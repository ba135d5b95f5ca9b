-- Tables of the lineage database. Rows a sample stay in Parquet; views show them (see store.py).

CREATE TABLE IF NOT EXISTS schema_version (
    version INTEGER NOT NULL
);

-- The storage folder as it was when the views were made, whose files are named from there.
ALTER TABLE schema_version ADD COLUMN IF NOT EXISTS root VARCHAR;

-- Run files that were imported: their state then, and why one could not be read.
CREATE TABLE IF NOT EXISTS run_files (
    run_id VARCHAR PRIMARY KEY,
    state VARCHAR NOT NULL,
    damage VARCHAR
);

-- What the last write left: a hash of each table's rows and of each view's SQL, by which a change by another program is
-- noticed. Hashes of another version of DuckDB cannot be compared.
CREATE TABLE IF NOT EXISTS contents (
    name VARCHAR PRIMARY KEY,
    content VARCHAR,
    duckdb VARCHAR
);

CREATE TABLE IF NOT EXISTS runs (
    run_id VARCHAR PRIMARY KEY,
    started_at TIMESTAMPTZ NOT NULL,
    settings VARCHAR NOT NULL,
    package_version VARCHAR NOT NULL,
    git_revision VARCHAR,
    python VARCHAR NOT NULL,
    platform VARCHAR NOT NULL
);

CREATE TABLE IF NOT EXISTS steps (
    run_id VARCHAR NOT NULL,
    step VARCHAR NOT NULL,
    attempt INTEGER NOT NULL,
    started_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    status VARCHAR NOT NULL,
    output VARCHAR,
    error VARCHAR,
    PRIMARY KEY (run_id, step, attempt)
);

CREATE TABLE IF NOT EXISTS snapshots (
    snapshot VARCHAR PRIMARY KEY,
    folder VARCHAR NOT NULL,
    read BIGINT NOT NULL,
    kept BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    rejects BIGINT NOT NULL,
    near_duplicates BIGINT NOT NULL,
    near_duplicates_dropped BOOLEAN NOT NULL
);

CREATE TABLE IF NOT EXISTS source_files (
    snapshot VARCHAR NOT NULL,
    source VARCHAR NOT NULL,
    file VARCHAR NOT NULL,
    format VARCHAR NOT NULL,
    form VARCHAR,
    sha256 VARCHAR,
    complete BOOLEAN NOT NULL,
    read BIGINT NOT NULL,
    kept BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    rejects BIGINT NOT NULL,
    PRIMARY KEY (snapshot, file)
);

CREATE TABLE IF NOT EXISTS embeddings (
    vectors VARCHAR PRIMARY KEY,
    snapshot VARCHAR NOT NULL,
    folder VARCHAR NOT NULL,
    model VARCHAR NOT NULL,
    revision VARCHAR NOT NULL,
    max_tokens INTEGER NOT NULL,
    dtype VARCHAR NOT NULL,
    dimension INTEGER NOT NULL,
    samples BIGINT NOT NULL
);

CREATE TABLE IF NOT EXISTS densities (
    density VARCHAR PRIMARY KEY,
    vectors VARCHAR NOT NULL,
    file VARCHAR NOT NULL,
    neighbors INTEGER NOT NULL,
    density_power DOUBLE NOT NULL,
    reference_size BIGINT NOT NULL
);

-- Columns that a database of an earlier version has not; empty in its rows.
ALTER TABLE densities ADD COLUMN IF NOT EXISTS neighbor_policy VARCHAR;
ALTER TABLE densities ADD COLUMN IF NOT EXISTS neighbors_used INTEGER;
ALTER TABLE densities ADD COLUMN IF NOT EXISTS index VARCHAR;
ALTER TABLE densities ADD COLUMN IF NOT EXISTS recall DOUBLE;

CREATE TABLE IF NOT EXISTS novelties (
    novelty VARCHAR PRIMARY KEY,
    density VARCHAR NOT NULL,
    file VARCHAR NOT NULL,
    proximity_power DOUBLE NOT NULL,
    novelsum DOUBLE NOT NULL
);

ALTER TABLE novelties ADD COLUMN IF NOT EXISTS self_distance VARCHAR;
ALTER TABLE novelties ADD COLUMN IF NOT EXISTS density_side VARCHAR;
ALTER TABLE novelties ADD COLUMN IF NOT EXISTS aggregate VARCHAR;

CREATE TABLE IF NOT EXISTS selections (
    selection VARCHAR PRIMARY KEY,
    snapshot VARCHAR NOT NULL,
    vectors VARCHAR NOT NULL,
    density VARCHAR NOT NULL,
    folder VARCHAR NOT NULL,
    strategy VARCHAR NOT NULL,
    k BIGINT NOT NULL,
    seed BIGINT NOT NULL,
    density_power DOUBLE NOT NULL,
    proximity_power DOUBLE NOT NULL
);

ALTER TABLE selections ADD COLUMN IF NOT EXISTS options VARCHAR;

-- A database of an earlier version keeps its table measures, with NovelSum alone.
CREATE TABLE IF NOT EXISTS set_measures (
    report VARCHAR NOT NULL,
    selection VARCHAR NOT NULL,
    set_name VARCHAR NOT NULL,
    measure VARCHAR NOT NULL,
    size BIGINT NOT NULL,
    value DOUBLE NOT NULL,
    low DOUBLE NOT NULL,
    high DOUBLE NOT NULL,
    PRIMARY KEY (report, set_name, measure)
);

-- `run_id` used the output. The run that made it, an earlier one perhaps, is in the record.
CREATE TABLE IF NOT EXISTS provenance (
    run_id VARCHAR NOT NULL,
    asset VARCHAR NOT NULL,
    output VARCHAR NOT NULL,
    bytes BIGINT NOT NULL,
    record VARCHAR NOT NULL,
    PRIMARY KEY (run_id, asset)
);

CREATE TABLE IF NOT EXISTS run_outputs (
    run_id VARCHAR PRIMARY KEY,
    snapshot VARCHAR NOT NULL,
    vectors VARCHAR NOT NULL,
    density VARCHAR NOT NULL,
    novelty VARCHAR NOT NULL,
    selection VARCHAR NOT NULL,
    report VARCHAR NOT NULL
);

ALTER TABLE run_outputs ADD COLUMN IF NOT EXISTS embedded BIGINT;

-- When gc removed data of the run; its rows stay.
ALTER TABLE run_outputs ADD COLUMN IF NOT EXISTS data_removed_at TIMESTAMPTZ;
