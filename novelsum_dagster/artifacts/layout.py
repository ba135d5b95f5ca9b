"""Where things are in the storage folder."""


def run_file(run_id: str) -> str:
    """Return where a run's own file is, in the storage folder."""
    return f"runs/{run_id}.json"
