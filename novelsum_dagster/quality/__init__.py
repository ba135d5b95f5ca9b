"""Data-quality checks between the steps: what must hold, and the verdict that later steps read."""
