"""The data card: what it says, whatever its sources are called, and that its sums find what was changed."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from novelsum_dagster.artifacts.verdicts import Failure, Verdict
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash
from novelsum_dagster.embedding.store import pool_vectors
from novelsum_dagster.quality.suites import Subject
from novelsum_dagster.quality.validate import verdicts_of
from novelsum_dagster.report.card import DataCard, build_card
from tests.curated import RUN, Curated, curate, hashes, short, write_wrong
from tests.pools import write_jsonl, write_settings

ATTACK = "<script>alert('x')</script>"
# As sources are named in the settings: each has something that Markdown, HTML, YAML or a table reads as its own.
NAMES = {
    "pipe.jsonl": "a|b `c` **d** [e](http://x.example/)",
    "line.jsonl": f"one\n\n---\n# two {ATTACK}",
    "slash.jsonl": "f\\|g ![h](http://x.example/i.png)",
    "plain.jsonl": "plain",
}
PARTS = {"eligibility.parquet", "README.md", "subset.jsonl", "picks.parquet", "manifest.json", "SHA256SUMS"}


@pytest.fixture(scope="module")
def curated(tmp_path_factory: pytest.TempPathFactory) -> Curated:
    """A pool of four sources with odd names, two of them with licences and citations; most samples are chosen."""
    folder = tmp_path_factory.mktemp("card")
    sources: list[dict[str, Any]] = []
    for number, (file, name) in enumerate(NAMES.items()):
        write_jsonl(folder / "pool" / file, short(4, start=4 * number))
        sources.append({"path": f"pool/{file}", "name": name})
    sources[0] |= {"licence": "mit", "citation": "Ada & Bob: <The> Pool|s. 1843"}
    sources[2] |= {"licence": "cc-by-4.0 | `x`"}
    return curate(write_settings(folder, pool={"sources": sources}, selection={"k": 15}, novelsum={"neighbors": 3}))


def _verdicts(curated: Curated) -> list[Verdict]:
    """Return the verdicts of the checks on what was really made."""
    made, root = curated.made, curated.root
    _, vectors = pool_vectors(root, made["raw_pool"], made["embeddings"])
    subjects = {name: Subject(made[name], root, curated.settings, made["raw_pool"], vectors) for name in made}
    return [verdict for name, subject in subjects.items() for verdict in verdicts_of(name, subject)]


def _built(curated: Curated, verdicts: list[Verdict] | None = None, **card: Any) -> tuple[DataCard, Path]:
    made = curated.made
    snapshot = made["raw_pool"]
    if "licences" in card:
        licences = dict(zip(NAMES.values(), card.pop("licences"), strict=True))
        files = tuple(file.model_copy(update={"licence": licences[file.source]}) for file in snapshot.files)
        snapshot = snapshot.model_copy(update={"files": files})
    found = build_card(
        curated.root,
        snapshot,
        made["embeddings"],
        made["selected_subset"],
        made["novelsum_report"],
        made=curated.records["selected_subset"],
        run_id=RUN,
        verdicts=_verdicts(curated) if verdicts is None else verdicts,
        settings=curated.with_settings(card=card),
    )
    return found, curated.root / found.folder


def _verdict(name: str, *, blocking: bool, passed: bool, observed: str = "3 of 9 rows") -> Verdict:
    failures = () if passed else (Failure(expectation="expect_it(column=x)", observed=observed),)
    return Verdict(
        step="raw_pool", name=name, key="k", blocking=blocking, passed=passed, expectations=1, failures=failures
    )


def _header(folder: Path) -> dict[str, Any]:
    """Return the YAML header of a card, as Hugging Face reads it."""
    begin, header, page = re.split(r"^---\n", (folder / "README.md").read_text(), maxsplit=2, flags=re.MULTILINE)
    assert begin == "" and page.startswith("\n# ")
    found: dict[str, Any] = yaml.safe_load(header)
    return found


def _page(folder: Path) -> str:
    return re.split(r"^---\n", (folder / "README.md").read_text(), maxsplit=2, flags=re.MULTILINE)[2]


def _cells(line: str) -> list[str]:
    """Return the cells of a table's row as a reader of GitHub's Markdown splits it."""
    assert line.startswith("|") and line.endswith("|")
    return [cell.strip() for cell in re.findall(r"((?:\\.|[^|\\])*)\|", line[1:])]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


@pytest.fixture(scope="module")
def card(curated: Curated) -> tuple[DataCard, Path]:
    return _built(curated, title=f"Chosen: {ATTACK} --- `x` | #1\n---\nend", signed_off_by="Ada <ada@x.example> *Lo*")


def test_the_folder_has_all_parts_and_copies_are_exact(curated: Curated, card: tuple[DataCard, Path]) -> None:
    found, folder = card
    assert found.folder == f"cards/card={found.key}"
    assert {path.name for path in folder.iterdir()} == PARTS | {"original"}
    subset = hashes(curated.root / curated.made["selected_subset"].folder)
    copies = {name: sha256 for name, sha256 in hashes(folder).items() if name.startswith(("subset", "picks", "orig"))}
    assert len(copies) == 2 + 4
    assert copies == {name: subset[name] for name in copies}
    assert len((folder / "subset.jsonl").read_text().splitlines()) == 15


def test_sha256sum_agrees(card: tuple[DataCard, Path]) -> None:
    found, folder = card
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    checked = {line.rpartition(": ")[0] for line in done.stdout.splitlines()}
    assert checked == set(hashes(folder)) - {"SHA256SUMS"}
    assert found.digest == file_hash(folder / "manifest.json")


def test_tampering_is_found(card: tuple[DataCard, Path], tmp_path: Path) -> None:
    for name in sorted(set(hashes(card[1])) - {"SHA256SUMS"}):
        copy = tmp_path / "copy"
        shutil.copytree(card[1], copy)
        write_wrong(copy / name)
        done = subprocess.run(
            ["sha256sum", "--check", "SHA256SUMS"], cwd=copy, capture_output=True, text=True, check=False
        )
        assert done.returncode == 1 and f"{name}: FAILED" in done.stdout
        assert done.stdout.count("FAILED") == 1
        (copy / name).unlink()
        gone = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=copy, capture_output=True, check=False)
        assert gone.returncode == 1
        shutil.rmtree(copy)


def test_the_manifest_says_what_it_was_made_from(curated: Curated, card: tuple[DataCard, Path]) -> None:
    _, folder = card
    manifest = json.loads((folder / "manifest.json").read_text())
    lines = [line.split("  ", 1) for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = {name: sha256 for sha256, name in lines}
    assert manifest["sha256"] == {name: value for name, value in sums.items() if name != "manifest.json"}
    assert manifest["outputs"] == {
        name: curated.made[name].key
        for name in ("raw_pool", "embeddings", "density", "selected_subset", "novelsum_report")
    }
    pool = hashes(curated.settings.base / "pool")
    assert [(one["source"], one["sha256"]) for one in manifest["sources"]] == [
        (name, pool[file]) for file, name in NAMES.items()
    ]
    assert manifest["settings"]["selection.k"] == 15 and manifest["seed"] == 42
    assert manifest["signed_off_by"] == "Ada <ada@x.example> *Lo*"
    assert len(manifest["checks"]) == len(_verdicts(curated)) and all(one["passed"] for one in manifest["checks"][:3])
    assert manifest["versions"] == curated.records["selected_subset"].versions


def test_names_of_sources_stay_in_their_cells(card: tuple[DataCard, Path]) -> None:
    lines = _page(card[1]).splitlines()
    start = lines.index("| source | licence, as given | in the pool | chosen | share of pool | share of subset |")
    rows = [_cells(line) for line in lines[start + 2 : start + 6]]
    assert all(len(row) == 6 for row in rows)
    assert lines[start + 6].strip() == ""
    shown = {_unescaped(row[0]): _unescaped(row[1]) for row in rows}
    assert shown == {
        "a|b `c` **d** [e](http://x.example/)": "mit",
        "one --- # two &lt;script&gt;alert('x')&lt;/script&gt;": "not given",
        "f\\|g ![h](http://x.example/i.png)": "cc-by-4.0 | `x`",
        "plain": "not given",
    }
    assert [row[2] for row in rows] == ["4"] * 4 and sum(int(row[3]) for row in rows) == 15


def test_nothing_that_comes_from_data_is_markup(card: tuple[DataCard, Path]) -> None:
    page = _page(card[1])
    assert "<script" not in page and "<ada" not in page and "<The>" not in page
    names = ("c`", "**d**", "[e](", "![h](", "*Lo*", "`x`")
    assert [name for name in names if re.search(rf"(?<!\\){re.escape(name)}", page)] == []
    # One title, and the sections that the card has.
    assert re.findall(r"^#+ .*", page, re.MULTILINE)[1:] == [
        "## Sources", "## How diverse it is", "## Biases", "## How it was made", "## How to cite",
    ]  # fmt: skip
    assert "- Ada &amp; Bob: &lt;The&gt; Pool\\|s. 1843\n" in page


def test_the_header_is_yaml_whatever_the_title_is(card: tuple[DataCard, Path]) -> None:
    header = _header(card[1])
    assert header["pretty_name"] == f"Chosen: {ATTACK} --- `x` | #1\n---\nend"
    assert header["license"] == "other"  # The sources have several.
    assert header["size_categories"] == ["n<1K"]
    assert header["configs"] == [{"config_name": "default", "data_files": "subset.jsonl"}]


def test_a_licence_that_the_sources_share_is_the_subsets(curated: Curated) -> None:
    folder = _built(curated, licences=["mit"] * 4)[1]
    assert _header(folder)["license"] == "mit"
    assert "No licence was given" not in _page(folder)
    assert set(json.loads((folder / "manifest.json").read_text())["licences"].values()) == {"mit"}


def test_without_licences_the_card_says_whose(curated: Curated) -> None:
    folder = _built(curated, licences=["mit", None, "mit", None])[1]
    assert _header(folder)["license"] == "other"
    [line] = [line for line in _page(folder).splitlines() if line.startswith("No licence was given")]
    assert "one --- # two &lt;script&gt;" in line and "plain" in line and "a\\|b" not in line


def test_files_of_one_source_may_have_several_licences(curated: Curated) -> None:
    """As where a glob finds train.jsonl in two folders: none of the licences may be lost."""
    made = dict(curated.made)
    files = list(made["raw_pool"].files)
    files[0] = files[0].model_copy(update={"licence": "mit"})
    for at, licence in ((1, "gpl-3.0"), (2, None), (3, "mit")):
        files[at] = files[at].model_copy(update={"source": files[0].source, "licence": licence})
    snapshot = made["raw_pool"].model_copy(update={"files": tuple(files)})
    table = snapshot.table(curated.root, "samples")
    other = Curated(curated.settings, {**made, "raw_pool": snapshot}, curated.records)
    # The samples' own column of sources is changed alike, in a copy of the snapshot.
    import pyarrow as pa

    from novelsum_dagster.common.files import write_table

    folder = curated.root / "pool" / "snapshot=one-name"
    names = pa.array([files[0].source] * len(table))
    write_table(table.set_column(table.schema.get_field_index("source"), "source", names), folder / "samples.parquet")
    other.made["raw_pool"] = snapshot.model_copy(update={"folder": "pool/snapshot=one-name"})
    page = _page(_built(other, [])[1])
    [row] = [line for line in page.splitlines() if line.startswith("| a\\|b")]
    assert _cells(row)[1] == "mit, gpl-3.0, not given"
    assert "No licence was given for a\\|b" in page
    assert _header(_built(other, [])[1])["license"] == "other"


def test_a_licence_of_the_settings_is_the_subsets(curated: Curated) -> None:
    assert _header(_built(curated, licence="cc0-1.0")[1])["license"] == "cc0-1.0"


def test_it_says_who_signed_off_or_that_nobody_has(curated: Curated, card: tuple[DataCard, Path]) -> None:
    assert "Signed off by Ada &lt;ada@x.example&gt; \\*Lo\\*." in _page(card[1])
    page = _page(_built(curated)[1])
    assert "Nobody has signed this subset off (setting `card.signed_off_by`)." in page
    assert "Signed off by" not in page


def test_a_title_is_made_of_the_sources(curated: Curated) -> None:
    folder = _built(curated)[1]
    assert _header(folder)["pretty_name"].startswith("A diverse subset of ")
    assert all(name in _header(folder)["pretty_name"] for name in NAMES.values())


def test_measures_are_those_of_the_report(curated: Curated, card: tuple[DataCard, Path]) -> None:
    report = curated.made["novelsum_report"]
    rows = [_cells(line) for line in _page(card[1]).splitlines() if line.startswith("| NovelSum")]
    assert [row[2] for row in rows][:1] == [
        f"{(of := report.of('selected')).value:,.4f} ({of.low:,.4f} to {of.high:,.4f})"
    ]
    assert len([line for line in _page(card[1]).splitlines() if " to " in line and line.startswith("|")]) == 12


def test_the_citations_are_each_there_once(curated: Curated) -> None:
    page = _page(_built(curated, citation="Cite me. [1]")[1])
    cited = page.partition("## How to cite\n")[2].strip().splitlines()
    assert cited[0] == "- Cite me. \\[1\\]"
    assert len(cited) == 3 and "NovelSum and NovelSelect" in cited[2]


def test_a_failed_blocking_check_refuses(curated: Curated) -> None:
    before = set((curated.root / "cards").iterdir())
    wrong = [
        _verdict("ids", blocking=True, passed=False),
        _verdict("odd", blocking=False, passed=False),
        _verdict("files", blocking=True, passed=False, observed="found 0"),
    ]
    with pytest.raises(InputError, match="no card for a subset whose checks failed") as error:
        _built(curated, wrong)
    assert "raw_pool: ids: expect_it(column=x) (3 of 9 rows)" in str(error.value)
    assert "raw_pool: files" in str(error.value) and "odd" not in str(error.value)
    assert set((curated.root / "cards").iterdir()) == before


def test_checks_that_warn_are_listed(curated: Curated) -> None:
    seen = f"such as source=a|b {ATTACK} ![x](http://x.example/)"
    warned = [
        _verdict("fine", blocking=True, passed=True),
        _verdict("odd", blocking=False, passed=False, observed=seen),
    ]
    page = _page(_built(curated, warned)[1])
    part = page.partition("Checks that warn:\n")[2].partition("## How it was made")[0].strip()
    assert len(part.splitlines()) == 1
    assert part.startswith("- raw\\_pool: odd: expect\\_it(column=x) (such as source=a\\|b &lt;script&gt;")
    assert "!\\[x\\](" in part and "No check warns." not in page
    assert "No check warns." in _page(_built(curated, [_verdict("fine", blocking=True, passed=True)])[1])


def test_the_same_card_again_has_the_same_key_and_files(curated: Curated) -> None:
    found, folder = _built(curated)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    # The record of a second run has another time and run, and is otherwise the same.
    curated.keep("selected_subset", curated.made["selected_subset"], "raw_pool", "embeddings", "density", **{
        **curated.records["selected_subset"].config
    })  # fmt: skip
    again, there = _built(curated)
    assert again == found and there == folder
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert [path.name for path in folder.parent.iterdir() if path.name.startswith(".")] == []
    other = _built(curated, signed_off_by="Bob")[0]
    assert other.key != found.key


def test_a_file_that_is_lost_is_put_back(curated: Curated) -> None:
    _, folder = _built(curated)
    before = hashes(folder)
    shutil.rmtree(folder / "original")
    (folder / "README.md").unlink()
    _built(curated)
    assert hashes(folder) == before
