"""What happened: runs, inputs, outputs and picks, in DuckDB tables over Parquet files."""
