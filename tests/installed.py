"""What must hold of the installed wheel, by the Python that it is installed for: tests/check-wheel runs this."""

import re
import sysconfig
from importlib.metadata import distribution
from importlib.resources import files
from pathlib import Path

import numpy as np

import novelsum_dagster
from novelsum_dagster.definitions import build_defs
from novelsum_dagster.diversity import novelsum, vendi_score
from novelsum_dagster.selection import novelselect
from novelsum_dagster.settings import Settings

DATA = [
    "dagster.yaml", "dbt_like_sql/dbt_project.yml", "dbt_like_sql/marts/run_costs.sql",
    "dbt_like_sql/marts/sources.yml", "dbt_like_sql/marts/columns.md",
    "lineage/schema.sql", "py.typed", "report/card.md", "report/page.css", "report/page.html",
]  # fmt: skip
"""Files beside the code that it reads."""


def main() -> None:
    """Look at the files, then call the public functions."""
    place = Path(novelsum_dagster.__file__).resolve()
    assert place.is_relative_to(Path(sysconfig.get_path("purelib")).resolve()), f"{place} is not the installed package"
    for name in DATA:
        assert files(novelsum_dagster).joinpath(name).is_file(), f"the wheel lacks {name}"
    tops = {path.parts[0] for path in distribution("novelsum-dagster").files or [] if ".." not in path.parts}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"novelsum_dagster"}, tops

    readme = distribution("novelsum-dagster").metadata["Description"]
    assert readme and not re.search(r"\]\((?!https://)", readme), "the README links to files that PyPI has not"

    rows = np.random.default_rng(0).normal(size=(60, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert len(set(novelselect(rows, 5).indices.tolist())) == 5
    assert novelsum(rows, rows).value > 0 and vendi_score(rows).value > 1
    assert build_defs(Settings()).resolve_all_asset_specs()


if __name__ == "__main__":
    main()
