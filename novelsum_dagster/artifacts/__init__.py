"""What a step leaves behind: the artifact, its provenance, the newest of each asset, publishing and fetching."""
