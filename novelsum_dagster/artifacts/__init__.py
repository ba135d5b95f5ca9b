"""Artifacts, the outputs of steps: their provenance, the newest of each asset, publishing and fetching."""
