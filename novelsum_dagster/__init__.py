"""NovelSum and NovelSelect as an audited Dagster pipeline."""
