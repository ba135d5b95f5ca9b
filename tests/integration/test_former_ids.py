"""Ids of releases before 0.2, which read less of a record, go on being understood."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.chosen import require_possible
from novelsum_dagster.selection.extension import earlier_subset
from novelsum_dagster.settings import Selection
from tests.defs.conftest import Curation
from tests.instances import in_memory
from tests.machines import called
from tests.pools import alpaca, write_jsonl, write_settings

pytestmark = pytest.mark.slow


def write_pool(folder: Path, **more: str) -> None:
    """Write records with more in them than an earlier release read, or without it."""
    write_jsonl(folder / "pool" / "one.jsonl", [{**record, **more} for record in alpaca(30)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """Return the folder of two runs: what the second one reads of its records the first one did not have."""
    folder = tmp_path_factory.mktemp("former")
    file = write_settings(folder, selection={"k": 8})
    found = []
    with in_memory() as instance:
        for more in ({}, {"system": "Be brief."}):
            write_pool(folder, **more)
            result = Curation(folder, file, instance).run(models=False)
            assert result.success
            found.append(result.run_id)
    return folder, found[0], found[1]


def ids_of(folder: Path) -> dict[str, str]:
    """Return the newest pool's ids by their former ones."""
    snapshot = newest_pool(folder)
    return {former: ids[0] for former, ids in snapshot.ids_by_former(folder / "curated").items()}


def newest_pool(folder: Path) -> PoolSnapshot:
    """Return the pool of the second run."""
    return PoolSnapshot.model_validate_json((folder / "curated" / "assets" / "raw_pool.json").read_bytes())


def test_why_takes_either_id(runs: tuple[Path, str, str]) -> None:
    folder, before, after = runs
    former, now = next(iter(ids_of(folder).items()))
    asked: list[dict[str, Any]] = []
    for id_, run in ((former, before), (former, after), (now, after)):
        done = called(folder, "why", id_, "--run", run, "--json")
        assert done.code == 0, done.err
        asked.append(json.loads(done.out))
    assert [one["sample"]["id"] for one in asked] == [former, now, now]
    assert asked[0]["sample"]["text"] == asked[1]["sample"]["text"]


def test_diff_says_that_records_have_another_id(runs: tuple[Path, str, str]) -> None:
    folder, before, after = runs
    done = called(folder, "diff", before, after, "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert len(found["entered"]) == len(found["left"]) == 8
    assert all("another id" in change["cause"] for change in (*found["entered"], *found["left"]))


def test_settings_may_name_former_ids(runs: tuple[Path, str, str]) -> None:
    folder, *_ = runs
    root, pool, former = folder / "curated", newest_pool(folder), next(iter(ids_of(folder)))
    require_possible(pool, root, Selection(k=3, must_include=(former,)))
    with pytest.raises(InputError, match="no sample"):
        require_possible(pool, root, Selection(k=3, must_include=("0" * 32,)))


def test_a_subset_of_former_ids_is_extended(runs: tuple[Path, str, str]) -> None:
    folder, *_ = runs
    root, now = folder / "curated", ids_of(folder)
    tables = {path: pq.read_table(path)["id"].to_pylist() for path in root.glob("selections/*/picks.parquet")}
    (path,) = [path for path, ids in tables.items() if set(ids) <= now.keys()]
    earlier = earlier_subset(root, newest_pool(folder), path.parent.name.removeprefix("selection="))
    assert earlier.kept == tuple(now[id_] for id_ in tables[path]) and earlier.gone == ()


def test_a_former_id_of_several_records_is_refused_with_theirs(runs: tuple[Path, str, str], tmp_path: Path) -> None:
    file = write_settings(tmp_path, selection={"k": 2})
    record = alpaca(1)[0]
    rows = [{**record, "system": text} for text in ("one", "two")]
    write_jsonl(tmp_path / "pool" / "one.jsonl", [*rows, *alpaca(5, start=1)])
    with in_memory() as instance:
        assert Curation(tmp_path, file, instance).run(models=False).success
    pool, root = newest_pool(tmp_path), tmp_path / "curated"
    ((former, ids),) = pool.ids_by_former(root).items()
    with pytest.raises(InputError, match=f"{ids[0]}, {ids[1]}"):
        require_possible(pool, root, Selection(k=2, must_exclude=(former,)))
