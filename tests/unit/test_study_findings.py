"""Tables of studies, what follows from them, and the page: synthetic studies whose truth is known."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING
from novelsum_dagster.study.findings import EVERY_CELL, WITHIN, Findings, Found, findings, main_findings
from novelsum_dagster.study.page import summary, write_study_page
from novelsum_dagster.study.tables import COLUMNS, Rows, read_tables, write_tables

STRATEGIES = ("random", "novelselect", "kmeans", "duplicate")
SEEDS, TRAINING_SEEDS = range(4), (7, 8, 9)
SOURCES = {"one": "seen", "two": "seen", "three": "unseen"}
GAINS = {"random": 0.0, "novelselect": 0.2, "kmeans": 0.0, "duplicate": -0.5}
"""Bits per byte by which a strategy's sets cost less than random ones."""


def _study(pool: str = "first", size: int = 100, seed: int = 0, sources: dict[str, str] = SOURCES) -> dict[str, Rows]:
    """Sets whose NovelSum goes with what they gain; tokens and the bigram model say nothing."""
    rng = np.random.default_rng(seed)
    tables: dict[str, Rows] = {name: [] for name in COLUMNS}
    noise = rng.normal(size=len(TRAINING_SEEDS))
    for strategy in STRATEGIES:
        for set_seed in SEEDS:
            name, own = f"{strategy}-{size}-s{set_seed}", 0.02 * rng.normal()
            place: dict[str, Any] = {
                "pool": pool, "set": name, "strategy": strategy, "variant": "", "density_side": "", "chosen_by": "own",
                "size": size, "set_seed": set_seed,
            }  # fmt: skip
            gained = GAINS[strategy] + own
            tables["sets"].append(
                {
                    **place,
                    "copies": 5 if strategy == "duplicate" else 1,
                    "tokens": 1e4 + 1e3 * rng.random(),
                    "distinct_tokens": 5e3,
                    "tokens_a_sample": 100 + rng.random(),
                    "near_duplicates": 0.0,
                    "characters_a_sample": 400 + rng.random(),
                    "close": rng.random() / 10,
                    "bigram_seen": 2 + rng.random(),
                    "bigram_unseen": 3 + rng.random(),
                }
            )
            for at, training_seed in enumerate(TRAINING_SEEDS):
                for number, (source, kind) in enumerate(sources.items()):
                    loss = 3 + number - gained + 0.01 * noise[at] + 0.001 * rng.normal()
                    tables["trials"].append(
                        {**place, "training_seed": training_seed, "source": source, "kind": kind, "bits_per_byte": loss}
                    )
            for representation in ("own", "prompt"):
                values = {"novelsum": gained, "facility_location": -gained, "radius": rng.normal()}
                for measure, value in {**values, "ttr": rng.random()}.items():
                    under = "" if measure == "ttr" else representation
                    if under or representation == "own":
                        row = {"pool": pool, "set": name, "representation": under, "measure": measure, "value": value}
                        tables["measures"].append(row)
    facts = {"training_model": "a model", "training_tokens": "1000", "sources": "<b>one</b> & two"}
    tables["studies"] = [{"pool": pool, "fact": name, "value": value} for name, value in facts.items()]
    return tables


def _together(*studies: dict[str, Rows]) -> dict[str, Rows]:
    return {name: [row for study in studies for row in study[name]] for name in COLUMNS}


def _found(tables: dict[str, Rows]) -> Findings:
    return findings(tables, 200)


@pytest.fixture(scope="module")
def two_pools() -> Findings:
    return _found(_together(_study(), _study("second", size=50, seed=1)))


def _one(found: Findings, **wanted: str) -> Found:
    asked = {"cell": EVERY_CELL, "kind": "seen", "group": ALL_SETS, "method": "spearman", "given": "", **wanted}
    (one,) = [one for one in found.correlations if all(getattr(one, key) == value for key, value in asked.items())]
    return one


# Tables.


def test_tables_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    study = _study()
    write_tables(study, tmp_path)
    found = read_tables([tmp_path])
    for name, rows in study.items():
        assert len(found[name]) == len(rows)
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            assert tuple(next(csv.reader(file))) == COLUMNS[name]
    assert found["trials"][5] == study["trials"][5] | {"bits_per_byte": found["trials"][5]["bits_per_byte"]}
    assert found["trials"][5]["bits_per_byte"] == pytest.approx(study["trials"][5]["bits_per_byte"], rel=5e-6)
    assert found["sets"][0]["copies"] == 1 and found["sets"][-1]["copies"] == 5
    digits = re.compile(r"[0-9]")
    assert all(len(digits.findall(cell)) <= 9 for cell in (tmp_path / "measures.csv").read_text().split(",")[-1:])


def test_a_pool_without_an_unseen_source_has_no_bigram_loss_there(tmp_path: Path) -> None:
    study = _study(sources={"one": "seen"})
    for row in study["sets"]:
        row["bigram_unseen"] = None
    write_tables(study, tmp_path)
    found = read_tables([tmp_path])
    assert {row["bigram_unseen"] for row in found["sets"]} == {None}
    assert {one.kind for one in _found(found).correlations} == {"seen"}


def test_a_pool_twice_is_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tables(_study(), tmp_path / name)
    with pytest.raises(InputError, match=r"the pool first is in two of the folders; give each study a name"):
        read_tables([tmp_path / "a", tmp_path / "b"])


@pytest.mark.parametrize("name", list(COLUMNS))
def test_a_missing_table_is_named(tmp_path: Path, name: str) -> None:
    write_tables(_study(), tmp_path)
    (tmp_path / f"{name}.csv").unlink()
    with pytest.raises(InputError, match=rf"{name}\.csv: is missing"):
        read_tables([tmp_path])


def test_a_number_that_is_none_is_named(tmp_path: Path) -> None:
    write_tables(_study(), tmp_path)
    path = tmp_path / "trials.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], lines[3].rsplit(",", 1)[0] + ",much", *lines[4:]]))
    with pytest.raises(InputError, match=r"trials\.csv:4: bits_per_byte is 'much'"):
        read_tables([tmp_path])


# Findings.


def test_performance_is_the_mean_z_score_over_sources() -> None:
    """With one pool and nothing held fixed, the coefficients are those of the sets' mean performance."""
    study = _study()
    found = _found(study)
    names = [row["set"] for row in study["sets"]]

    def performance(kind: str) -> list[float]:
        sources = [source for source, one in SOURCES.items() if one == kind]
        scores = []
        for source in sources:
            means = [
                np.mean(
                    [row["bits_per_byte"] for row in study["trials"] if (row["set"], row["source"]) == (name, source)]
                )
                for name in names
            ]
            scores.append(-stats.zscore(means))
        return list(np.mean(scores, axis=0))

    for measure, sign in (("novelsum", 1), ("facility_location", -1), ("radius", 1)):
        values = [
            sign * row["value"]
            for row in study["measures"]
            if (row["measure"], row["representation"]) == (measure, "own")
        ]
        for kind in ("seen", "unseen"):
            one = _one(found, measure=measure, representation="own", kind=kind)
            assert one.value == pytest.approx(stats.spearmanr(values, performance(kind)).statistic)
            one = _one(found, measure=measure, representation="own", kind=kind, method="pearson")
            assert one.value == pytest.approx(stats.pearsonr(values, performance(kind)).statistic)
    bigram = [-row["bigram_unseen"] for row in study["sets"]]
    assert _one(found, measure="bigram", kind="unseen").value == pytest.approx(
        stats.spearmanr(bigram, performance("unseen")).statistic
    )


def test_what_goes_with_performance_is_found_and_what_does_not_is_not(two_pools: Findings) -> None:
    for group in (ALL_SETS, SELECTING, WITHIN):
        one = _one(two_pools, measure="novelsum", representation="own", group=group)
        assert (one.value or 0) > 0.9 and (one.low or 0) > 0.8
        assert one.sets == {ALL_SETS: 32, SELECTING: 16, WITHIN: 32}[group]
        assert _one(two_pools, measure="facility_location", representation="prompt", group=group).value == one.value
        for given in ("length", "near-duplicates", "length and near-duplicates"):
            fixed = _one(two_pools, measure="novelsum", representation="own", group=group, given=given)
            assert (fixed.value or 0) > 0.85
    assert _one(two_pools, measure="ttr").representation == ""
    assert (_one(two_pools, measure="ttr").low or 0) < 0
    assert _one(two_pools, measure="near_duplicates").value is None  # Equal in all sets.
    assert main_findings(two_pools, "seen", ALL_SETS)[0].measure in ("novelsum", "facility_location")


def test_several_cells_are_shown_one_by_one_too(two_pools: Findings) -> None:
    parts = [
        _one(two_pools, measure="radius", representation="own", cell=cell) for cell in ("first, 100", "second, 50")
    ]
    whole = _one(two_pools, measure="radius", representation="own")
    assert [one.sets for one in parts] == [16, 16]
    assert whole.value == pytest.approx(np.mean([one.value for one in parts]))


def test_strategies_are_ranked_by_what_they_gain(two_pools: Findings) -> None:
    for pool in ("first", "second"):
        for kind in ("seen", "unseen"):
            gains = [one for one in two_pools.gains if (one.pool, one.kind) == (pool, kind)]
            assert [one.rank for one in gains] == [1, 2, 3]
            assert gains[0].strategy == "novelselect" and gains[2].strategy == "duplicate-x5"
            for one in gains:
                truth = GAINS[one.strategy.split("-")[0]]
                assert one.value == pytest.approx(truth, abs=0.05)
                assert one.low is not None and one.high is not None
                assert one.low < one.value < one.high
                assert one.share == pytest.approx(one.value / (one.loss + one.value))
            assert (gains[0].low or 0) > 0 > (gains[2].high or 0)
            assert (gains[0].sets, gains[0].random_sets, gains[0].training_seeds) == (4, 4, 3)


def test_power_counts_sets_and_strategies() -> None:
    found = _found(_study())
    sets = {one.group: one.sets for one in found.power}
    assert sets == {ALL_SETS: 16, SELECTING: 8, WITHIN: 16}
    correlation = {one.group: one.correlation or 0 for one in found.power}
    assert correlation[WITHIN] > correlation[ALL_SETS]
    for one in found.detectable:
        assert 0.01 < (one.difference or 0) < 0.2  # Sets vary by 0.02.


def test_a_training_seed_that_is_not_done_for_all_sets_does_not_count() -> None:
    study = _study()
    last = study["sets"][-1]["set"]
    study["trials"] = [row for row in study["trials"] if (row["set"], row["training_seed"]) != (last, 9)]
    found = _found(study)
    assert found.cells == [{"pool": "first", "size": 100, "sets": 16, "training_seeds": 2}]
    study["trials"] = [row for row in study["trials"] if row["set"] != last]
    with pytest.raises(InputError, match="pool first, size 100: no training seed is complete for all sets"):
        _found(study)


def test_sets_that_a_measure_lacks_are_left_out() -> None:
    study = _study()
    gone = [row["set"] for row in study["sets"][:5]]
    study["measures"] = [row for row in study["measures"] if row["measure"] != "ttr" or row["set"] not in gone]
    found = _found(study)
    assert _one(found, measure="ttr").sets == 11
    assert _one(found, measure="radius", representation="own").sets == 16


def test_without_random_sets_nothing_is_gained() -> None:
    study = _study()
    gone = {row["set"] for row in study["sets"] if row["strategy"] == "random"}
    study = {
        name: [row for row in rows if row.get("set") not in gone] if name != "studies" else rows
        for name, rows in study.items()
    }
    found = _found(study)
    assert found.gains == [] and found.detectable == []


def test_equal_tables_give_equal_findings(two_pools: Findings) -> None:
    again = _found(_together(_study(), _study("second", size=50, seed=1)))
    assert again == two_pools


# The page.


def test_the_page_loads_nothing_and_escapes_what_it_shows(two_pools: Findings, tmp_path: Path) -> None:
    write_study_page(two_pools, tmp_path / "study.html")
    html = (tmp_path / "study.html").read_text()
    assert "<script" not in html and "http://" not in html.replace("http://www.w3.org", "") and "https://" not in html
    assert "default-src 'none'" in html
    assert "&lt;b&gt;one&lt;/b&gt; &amp; two" in html and "<b>one</b>" not in html
    for sentence in summary(two_pools):
        assert sentence.replace("'", "&#39;") in html
    pictures = re.findall(r'<img src="data:image/svg\+xml;base64,[A-Za-z0-9+/=]+" alt="([^"]+)">', html)
    assert len(pictures) == 4  # Two cells, and two kinds of sources.
    for name in re.findall(r'<a href="([^#"]+)"', html):
        assert (tmp_path / name).stat().st_size > 0
    assert json.loads((tmp_path / "outcome.json").read_text()) == json.loads(json.dumps(two_pools.records()))
    with (tmp_path / "correlations.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(two_pools.correlations)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_study_page(two_pools, tmp_path / "study.html")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_summary_is_made_from_the_numbers(two_pools: Findings) -> None:
    text = " ".join(summary(two_pools))
    assert "From 2 pools, 32 sets were chosen and measured, and 96 models trained on them" in text
    assert "On seen sources, strategies beat random in 2 of 6 comparisons and lose in 2" in text
    assert "novelselect beats random in each of the 2 pools and sizes." in text
    assert "No plain fact of the sets correlates with performance as well as" in text
    assert re.search(r"NovelSum: Spearman (0\.9|1\.0)", text)
    turned = _study()
    for row in turned["trials"]:
        row["bits_per_byte"] = 10 - row["bits_per_byte"]
    text = " ".join(summary(_found(turned)))
    assert re.search(r"NovelSum: Spearman -(0\.9|1\.0)", text)
    assert "strategies beat random in 1 of 3 comparisons and lose in 1" in text
    assert "duplicate-x5 beats random." in text


def test_a_study_without_random_or_seeds_has_a_page(tmp_path: Path) -> None:
    study = _study(sources={"one": "seen"})
    study = {
        "sets": [row for row in study["sets"] if row["strategy"] == "kmeans"],
        "trials": [row for row in study["trials"] if row["strategy"] == "kmeans" and row["training_seed"] == 7],
        "measures": [row for row in study["measures"] if row["set"].startswith("kmeans")],
        "studies": study["studies"],
    }
    found = _found(study)
    write_study_page(found, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    assert "The studies have no random sets to compare strategies with." in html
    assert not (tmp_path / "gains.csv").exists()
