"""The lineage of every run: inputs, outputs and picks, in DuckDB tables over Parquet files."""
