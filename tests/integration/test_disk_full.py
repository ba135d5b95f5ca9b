"""A disk that is full: a clear word, and nothing that was there is harmed."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from novelsum_dagster.artifacts.provenance import damaged_files, read_record
from tests.machines import Machine
from tests.pools import REAL_MODEL, alpaca, write_jsonl, write_settings


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, that can be made larger."""
    place = tmp_path / "disk"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", place], check=False).returncode
    ):
        pytest.skip("needs the right to mount a small file system")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def _fill(place: Path, spare: int) -> Path:
    """Leave so many bytes on a file system."""
    status = os.statvfs(place)
    ballast = place / "ballast"
    with ballast.open("wb") as file:
        file.write(b"\0" * max(0, status.f_bavail * status.f_frsize - spare))
    return ballast


def _outputs(root: Path) -> dict[str, bytes]:
    return {path.stem: path.read_bytes() for path in (root / "assets").glob("*.json")}


@pytest.mark.slow
@pytest.mark.parametrize("spare", [20_000, 600_000])
def test_a_full_disk_is_told_and_harms_nothing(disk: Path, tmp_path: Path, spare: int) -> None:
    write_jsonl(tmp_path / "pool" / "old.jsonl", alpaca(60))
    machine = Machine(
        write_settings(tmp_path, storage=str(disk / "curated"), selection={"k": 12}, embedding=REAL_MODEL),
        tmp_path / "cache",
    )
    subset = Path(machine.run()["subset"])
    root, before, chosen = disk / "curated", _outputs(disk / "curated"), subset.read_bytes()
    write_jsonl(tmp_path / "pool" / "new.jsonl", alpaca(100, start=60))

    ballast = _fill(disk, spare)
    failed = machine.novelsum("run", "--json")
    assert failed.returncode == 1, failed.stderr
    assert "is full" in failed.stderr and "Traceback" not in failed.stderr
    assert subset.read_bytes() == chosen
    for asset, handle in before.items():
        if _outputs(root)[asset] == handle and asset not in ("lineage",):
            assert damaged_files(root, read_record(root, asset, json.loads(handle)["key"])) == []
    asked = machine.novelsum("why", "old.jsonl:1", "--json")
    assert asked.returncode == 0, asked.stderr

    ballast.unlink()
    assert Path(machine.run()["subset"]).exists()
