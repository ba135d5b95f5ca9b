"""The Dagster layer: assets, checks and resources, thin over the pure packages."""
