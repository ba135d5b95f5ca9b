"""Queries of the lineage: why a sample was picked, what changed between runs, whether an output can be rebuilt."""
