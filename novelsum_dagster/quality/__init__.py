"""Data-quality checks between the steps: expectations, and the verdicts that later steps read."""
