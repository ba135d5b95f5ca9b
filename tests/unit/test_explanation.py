"""Why measures differ: every cause and rule with crafted sets, and each number that is said against brute force."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from novelsum_dagster.cli.main import app
from novelsum_dagster.cli.oneshot import EmbeddedFiles, beside_random, choose
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.measures import MEASURES, Value
from novelsum_dagster.embedding.cut import Cut
from novelsum_dagster.embedding.store import pool_vectors
from novelsum_dagster.report.explanation import (
    CROWDED,
    RANDOM,
    SELECTED,
    Compared,
    Contrast,
    Drift,
    Explanation,
    Facts,
    compare,
    explain,
    facts_of,
    less_diverse,
    names_of,
    nearest_others,
    random_rows,
    recommend,
)
from novelsum_dagster.selection.covering import covering
from novelsum_dagster.settings import Settings
from tests.curated import curate
from tests.pools import alpaca, write_jsonl, write_settings

SAME = Contrast(selected=0.1, random=0.1, low=-0.02, high=0.02)
CROWDING = Contrast(selected=0.6, random=0.1, low=0.45, high=0.55)
COVERAGE = Contrast(selected=0.5, random=0.4, low=0.09, high=0.11)
STILL = Drift(variation=0.02, chance=0.04, source="web", pool_share=0.2, selected_share=0.22)
DRIFT = Drift(variation=0.3, chance=0.04, source="web", pool_share=0.201, selected_share=0.5)


def facts(**given: Any) -> Facts:
    plain: dict[str, Any] = {
        "picks": 100,
        "radius": 0.1,
        "crowding": SAME,
        "drift": STILL,
        "coverage": SAME,
        "near_duplicates": 0,
        "unread": 0.0,
    }
    return Facts(**{**plain, **given})


def compared(*ahead: str | None) -> list[Compared]:
    """Return measures of which the named sets are the more diverse; None: the intervals overlap."""
    found = []
    for (key, known), name in zip(MEASURES.items(), ahead, strict=False):
        more, less = Value(2.0, 1.9, 2.1), Value(1.0, 0.9, 2.0 if name is None else 1.1)
        if (name == RANDOM) == known.higher_is_diverse:
            more, less = less, more
        found.append(Compared(key, more, less))
    return found


def settings(**sections: Any) -> Settings:
    return Settings.model_validate(sections)


def test_which_set_is_more_diverse_follows_the_direction_and_the_intervals() -> None:
    low, high = Value(1.0, 0.9, 1.1), Value(2.0, 1.9, 2.1)
    assert Compared("novelsum", high, low).ahead == SELECTED
    assert Compared("novelsum", low, high).ahead == RANDOM
    assert Compared("facility_location", low, high).ahead == SELECTED
    assert Compared("facility_location", high, low).ahead == RANDOM
    assert Compared("novelsum", Value(2.0, 1.1, 2.1), low).ahead is None
    assert Compared("novelsum", low, low).ahead is None
    assert [one.ahead for one in compared(RANDOM, SELECTED, None)] == [RANDOM, SELECTED, None]


def test_measures_that_one_set_lacks_are_not_compared() -> None:
    one, none = Value(1.0, 1.0, 1.0), Value(float("nan"), 0.0, 0.0)
    found = compare({"radius": one, "ttr": one, "novelsum": one}, {"novelsum": one, "radius": none, "vocd_d": one})
    assert [row.measure for row in found] == ["novelsum"]
    assert found[0].record() == {"measure": "novelsum", "selected": 1.0, "random": 1.0, "more_diverse": None}
    assert names_of(found) == "NovelSum"
    assert compare({}, {}) == ()


@pytest.mark.parametrize(
    ("ahead", "expected"),
    [
        ((RANDOM, RANDOM, SELECTED), "by 2 of 3 measures"),
        ((RANDOM, SELECTED), None),
        ((RANDOM, None, None), None),
        ((SELECTED, SELECTED, None), None),
        ((), None),
    ],
)
def test_the_line_on_a_terminal_is_there_where_most_measures_say_so(
    ahead: tuple[str | None, ...], expected: str | None
) -> None:
    line = less_diverse(compared(*ahead))
    assert (line is None) == (expected is None)
    assert expected is None or expected in str(line)


def test_the_line_names_the_measures_that_differ_most() -> None:
    def differs(measure: str, selected: float, random: float) -> Compared:
        return Compared(measure, *(Value(value, 0.99 * value, 1.01 * value) for value in (selected, random)))

    found = [
        differs("novelsum", 0.8, 0.9),
        differs("knn_distance", 0.2134, 0.43),
        differs("cluster_inertia", 1310.4, 4728.9),
        differs("facility_location", 12944.3, 11116.0),
        differs("radius", 0.5, 0.1),
    ]
    assert less_diverse(found) == (
        "Less diverse than a random subset by 4 of 5 measures (Cluster inertia 1,310 against 4,729, KNN distance 0.213"
        " against 0.43, Facility location 12,944 against 11,116, ...)"
    )
    assert str(less_diverse(found[1:3])).endswith("KNN distance 0.213 against 0.43)")


def test_values_below_zero_differ_by_their_sizes() -> None:
    found = [Compared("log_determinant", Value(-3.0, -3.1, -2.9), Value(1.0, 0.9, 1.1))]
    assert "Log-determinant -3 against 1" in str(less_diverse(found))


@pytest.mark.parametrize(
    ("ahead", "sentence"),
    [
        ((), "No measure was computed for both the selected subset and a random one."),
        ((SELECTED, SELECTED), "The measures agree: 2 of 2 find the selected subset the more diverse one."),
        (
            (SELECTED, None),
            "The measures agree: 1 of 2 find the selected subset the more diverse one; for 1 the intervals overlap.",
        ),
        (
            (None, None),
            "The measures agree: for all 2 the intervals of the selected and a random subset overlap.",
        ),
        ((RANDOM, RANDOM), "2 of 2 measures find a random subset of the same size more diverse."),
        (
            (RANDOM, SELECTED, None),
            "1 of 3 measures find a random subset of the same size more diverse, 1 the selected one; for 1 the"
            " intervals overlap.",
        ),
    ],
)
def test_the_first_sentence_counts_the_measures(ahead: tuple[str | None, ...], sentence: str) -> None:
    assert explain(compared(*ahead), facts(), settings()).sentences[0] == sentence


CAUSES: dict[str, tuple[dict[str, Any], str]] = {
    "crowding": (
        {"crowding": CROWDING},
        "60.0% of the picks lie within a cosine distance of 0.1 of another pick (random: 10.0%)",
    ),
    "drift": (
        {"drift": DRIFT},
        "the source “web” grew from 20.1% of the pool to 50.0% of the subset, and the total variation of all shares is"
        " 0.30 (97.5% of random subsets: at most 0.04)",
    ),
    "coverage": (
        {"coverage": COVERAGE},
        "the pool's samples are at a mean cosine distance of 0.500 from the nearest pick (random: 0.400)",
    ),
}


@pytest.mark.parametrize("name", CAUSES)
def test_each_cause_is_named_by_its_numbers(name: str) -> None:
    given_facts, words = CAUSES[name]
    found = explain(compared(RANDOM, SELECTED), facts(**given_facts), settings())
    assert found.causes == (name,)
    assert found.sentences[1] == f"What differs from the random subset: {words}."


def test_all_causes_stand_in_one_sentence() -> None:
    found = explain(compared(RANDOM), facts(crowding=CROWDING, drift=DRIFT, coverage=COVERAGE), settings())
    assert found.causes == ("crowding", "drift", "coverage")
    assert len(found.sentences) == 2
    assert all(words in found.sentences[1] for _, words in CAUSES.values())


def test_where_measures_agree_no_cause_is_named() -> None:
    found = explain(compared(SELECTED, None), facts(crowding=CROWDING, drift=DRIFT, coverage=COVERAGE), settings())
    assert (found.causes, len(found.sentences), found.recommendation) == ((), 1, None)


@pytest.mark.parametrize(
    "within_chance",
    [
        {},
        # Within the interval.
        {"crowding": Contrast(selected=0.3, random=0.1, low=-0.01, high=0.4)},
        {"drift": Drift(variation=0.3, chance=0.31, source="web", pool_share=0.2, selected_share=0.5)},
        {"coverage": Contrast(selected=0.5, random=0.4, low=-0.01, high=0.2)},
        # Beyond it, but small.
        {"crowding": Contrast(selected=0.14, random=0.1, low=0.03, high=0.05)},
        {"drift": Drift(variation=0.04, chance=0.01, source="web", pool_share=0.2, selected_share=0.24)},
        {"coverage": Contrast(selected=0.41, random=0.4, low=0.009, high=0.011)},
        # The other way.
        {"crowding": Contrast(selected=0.1, random=0.6, low=-0.55, high=-0.45)},
        {"coverage": Contrast(selected=0.4, random=0.5, low=-0.11, high=-0.09)},
    ],
)
def test_what_chance_may_explain_is_no_cause(within_chance: dict[str, Any]) -> None:
    found = explain(compared(RANDOM), facts(**within_chance), settings())
    assert found.causes == ()
    assert found.sentences[1].startswith("No cause was found")
    assert found.recommendation is None


CROWDED_PICKS = {"crowding": CROWDING, "near_duplicates": 30}


@pytest.mark.parametrize(
    ("given_facts", "given_settings", "expected"),
    [
        (CROWDED_PICKS, {}, ["pool.near_duplicates.by: both", "pool.near_duplicates.drop: true"]),
        (CROWDED_PICKS, {"pool": {"near_duplicates": {"by": "both"}}}, ["pool.near_duplicates.drop: true"]),
        (
            CROWDED_PICKS,
            {"selection": {"strategy": "kmeans"}},
            ["pool.near_duplicates.by: both", "pool.near_duplicates.drop: true"],
        ),
        (
            {"crowding": CROWDING},
            {"pool": {"near_duplicates": {"by": "off"}}},
            ["pool.near_duplicates.by: both", "pool.near_duplicates.drop: true"],
        ),
        ({"crowding": CROWDING}, {}, ["novelsum.density_power: 0.25"]),
        # Too few near-duplicates to explain it.
        ({"crowding": CROWDING, "near_duplicates": 24}, {}, ["novelsum.density_power: 0.25"]),
        ({"crowding": CROWDING}, {"novelsum": {"density_power": 0.25}}, ["selection.density_side: column"]),
        (
            {"crowding": CROWDING},
            {"novelsum": {"density_power": 0.25}, "selection": {"density_side": "column"}},
            [],
        ),
        # Goes with no other side.
        (
            {"crowding": CROWDING},
            {"novelsum": {"density_power": 0.2}, "selection": {"density_side": "objective", "swap_rounds": 2}},
            [],
        ),
        ({"crowding": CROWDING}, {"novelsum": {"density_power": 0}}, []),
        ({"crowding": CROWDING}, {"selection": {"strategy": "kmeans"}}, []),
        ({"crowding": CROWDING, "drift": DRIFT}, {"selection": {"strategy": "kmeans"}}, []),
        ({"drift": DRIFT}, {}, ["selection.quotas: [{column: source, caps: {web: 21}}]"]),
        (
            {"drift": DRIFT},
            {"selection": {"quotas": [{"column": "form", "caps": {"chat": 9}}]}},
            ["selection.quotas: [{column: form, caps: {chat: 9}, floors: {}}, {column: source, caps: {web: 21}}]"],
        ),
        ({"drift": DRIFT}, {"selection": {"quotas": [{"column": "source", "floors": {"web": 9}}]}}, []),
        ({"drift": DRIFT}, {"selection": {"partitions": 4}}, []),
        ({"coverage": COVERAGE}, {}, ["selection.strategy: qdit"]),
        (
            {"coverage": COVERAGE},
            {"selection": {"quality": "score"}},
            ["selection.strategy: gist", "selection.gist.coverage_weight: 0.5"],
        ),
        ({"coverage": COVERAGE}, {"selection": {"strategy": "qdit"}}, []),
        ({"coverage": COVERAGE}, {"selection": {"strategy": "gist"}}, []),
        ({"coverage": COVERAGE}, {"selection": {"must_include": ["a"]}}, []),
        ({"drift": DRIFT, "coverage": COVERAGE}, {}, ["selection.quotas: [{column: source, caps: {web: 21}}]"]),
        ({"unread": 0.3}, {}, ["embedding.long: windows"]),
        ({"unread": 0.2}, {}, []),
        ({"unread": 0.3, **CROWDED_PICKS}, {}, ["pool.near_duplicates.by: both", "pool.near_duplicates.drop: true"]),
    ],
)
def test_the_first_rule_that_holds_and_is_not_set_is_the_recommendation(
    given_facts: dict[str, Any], given_settings: dict[str, Any], expected: list[str]
) -> None:
    found = explain(compared(RANDOM), facts(**given_facts), settings(**given_settings)).recommendation
    assert (found.changes if found else []) == expected
    if found:
        assert found.because in found.words


def test_what_the_model_does_not_read_is_said_though_measures_agree() -> None:
    found = explain(compared(SELECTED), facts(unread=0.31), settings()).recommendation
    assert found is not None
    assert found.words == "embedding.long: windows, because the model did not read 31.0% of the texts' tokens"


SHARES = st.floats(0, 1)


@given(
    crowding=st.tuples(SHARES, SHARES),
    coverage=st.tuples(SHARES, SHARES),
    drift=st.tuples(SHARES, SHARES, SHARES),
    near_duplicates=st.integers(0, 100),
    unread=SHARES,
    power=st.sampled_from([0, 0.1, 0.25, 0.5, 2]),
    by=st.sampled_from(["off", "minhash", "embedding", "both"]),
    drop=st.booleans(),
    selection=st.sampled_from(
        [
            {},
            {"strategy": "kmeans"},
            {"strategy": "qdit"},
            {"strategy": "gist"},
            {"strategy": "random"},
            {"density_side": "column"},
            {"density_side": "objective", "swap_rounds": 1},
            {"quality": "score"},
            {"partitions": 3},
            {"must_exclude": ["x"]},
            {"token_budget": 5000},
        ]
    ),
    long=st.sampled_from(["truncate", "windows"]),
)
def test_a_recommendation_is_never_what_is_set_and_can_be_set(
    crowding: tuple[float, float], coverage: tuple[float, float], drift: tuple[float, float, float],
    near_duplicates: int, unread: float, power: float, by: str, drop: bool, selection: dict[str, Any], long: str,
) -> None:  # fmt: skip
    def contrast(selected: float, random: float) -> Contrast:
        return Contrast(selected=selected, random=random, low=selected - random - 0.01, high=selected - random + 0.01)

    known = facts(
        crowding=contrast(*crowding),
        coverage=contrast(*coverage),
        drift=Drift(variation=drift[0], chance=0.1, source="a: {b}", pool_share=drift[1], selected_share=drift[2]),
        near_duplicates=near_duplicates,
        unread=unread,
    )
    now = settings(
        novelsum={"density_power": power},
        pool={"near_duplicates": {"by": by, "drop": drop}},
        selection=selection,
        embedding={"long": long},
    )
    found = explain(compared(RANDOM), known, now)
    assert found == explain(compared(RANDOM), known, now)
    assert Explanation.model_validate_json(found.model_dump_json()) == found
    if found.recommendation is None:
        return
    file: dict[str, Any] = now.model_dump()
    for line, (key, value) in zip(found.recommendation.changes, found.recommendation.settings.items(), strict=True):
        (written,) = yaml.safe_load(line).items()
        assert written == (key, value)
        *path, last = key.split(".")
        section = file
        for part in path:
            section = section[part]
        assert section[last] != value
        section[last] = value
    Settings.model_validate(file)


def test_no_cause_no_recommendation() -> None:
    assert recommend({}, facts(crowding=CROWDING, drift=DRIFT, coverage=COVERAGE), settings()) is None


def _numbers(text: str) -> list[float]:
    return [float(number) / (100 if percent else 1) for number, percent in re.findall(r"(\d+\.?\d*)(%?)", text)]


def _distances(vectors: np.ndarray, others: np.ndarray) -> np.ndarray:
    rows, columns = (part.astype(np.float64) for part in (vectors, others))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    columns /= np.linalg.norm(columns, axis=1, keepdims=True)
    return 1 - rows @ columns.T


def _apart(vectors: np.ndarray) -> list[float]:
    far = _distances(vectors, vectors)
    return [min((far[a, b] for b in range(len(far)) if a != b), default=np.inf) for a in range(len(far))]


def _pool(seed: int, clumps: int = 3) -> tuple[np.ndarray, list[str], np.ndarray, np.ndarray]:
    """Return vectors, sources, picks that crowd in a few clumps, and a random subset."""
    generator = np.random.default_rng(seed)
    spread = generator.normal(size=(120, 16))
    dense = np.repeat(generator.normal(size=(clumps, 16)), 20, axis=0) + generator.normal(size=(20 * clumps, 16)) / 20
    vectors = np.concatenate([spread, dense]).astype(np.float32)
    sources = [("web", "books", "“odd”")[row % 3] if row < 120 else "dense" for row in range(len(vectors))]
    selected = np.concatenate([generator.permutation(20 * clumps)[:25] + 120, generator.permutation(120)[:5]])
    return vectors, sources, selected, random_rows(len(vectors), 30, generator)


def _facts_of(vectors: np.ndarray, sources: Iterable[str], selected: np.ndarray, random: np.ndarray) -> Facts:
    near, near_random = (covering(vectors, rows, 1).distance[:, 0] for rows in (selected, random))
    column = pa.chunked_array([list(sources)])
    return facts_of(vectors, column, selected, random, near, near_random, near_duplicates=3, unread=0.0, seed=7)


@pytest.mark.parametrize("seed", range(4))
def test_every_number_that_is_said_is_that_of_brute_force(seed: int) -> None:
    vectors, sources, selected, random = _pool(seed)
    known = _facts_of(vectors, sources, selected, random)
    found = explain(compared(RANDOM), known, settings())
    assert found.causes == ("crowding", "drift", "coverage")
    crowding, drift, coverage = found.sentences[1].split("; ")

    apart, apart_at_random = _apart(vectors[selected]), _apart(vectors[random])
    radius = min(CROWDED, float(np.median(apart_at_random)) / 2)
    shares = [np.mean([distance <= radius for distance in of]) for of in (apart, apart_at_random)]
    assert _numbers(crowding) == pytest.approx([shares[0], radius, shares[1]], abs=6e-4)

    chosen = [sources[row] for row in selected]
    growth = {one: chosen.count(one) / len(chosen) - sources.count(one) / len(sources) for one in set(sources)}
    most = max(growth, key=lambda one: growth[one])
    variation = sum(abs(value) for value in growth.values()) / 2
    assert f"“{most}”" in drift
    said = [sources.count(most) / len(sources), chosen.count(most) / len(chosen), variation, 0.975, known.drift.chance]
    assert _numbers(drift.replace("“odd”", "")) == pytest.approx(said, abs=6e-3)

    means = [_distances(vectors, vectors[rows]).min(axis=1).mean() for rows in (selected, random)]
    assert _numbers(coverage.removesuffix(".")) == pytest.approx(means, abs=6e-4)


def test_the_chance_of_drift_is_the_quantile_of_random_subsets() -> None:
    vectors, sources, selected, random = _pool(0)
    known, generator = _facts_of(vectors, sources, selected, random), np.random.default_rng(99)
    pool = {one: sources.count(one) / len(sources) for one in set(sources)}
    drawn = []
    for _ in range(4000):
        names = [sources[row] for row in generator.permutation(len(sources))[: len(selected)]]
        drawn.append(sum(abs(names.count(one) / len(names) - share) for one, share in pool.items()) / 2)
    assert known.drift.chance == pytest.approx(np.quantile(drawn, 0.975), abs=0.035)


def test_a_random_selection_has_no_cause() -> None:
    vectors, sources, _, random = _pool(1)
    other = random_rows(len(vectors), 30, np.random.default_rng(5))
    assert explain(compared(RANDOM), _facts_of(vectors, sources, other, random), settings()).causes == ()


def test_intervals_of_differences_are_about_the_difference() -> None:
    vectors, sources, selected, random = _pool(2)
    known = _facts_of(vectors, sources, selected, random)
    for contrast in (known.crowding, known.coverage):
        assert contrast.low < contrast.selected - contrast.random < contrast.high
    same = _facts_of(vectors, sources, random, random)
    assert same.crowding.low < 0 < same.crowding.high
    assert (same.coverage.low, same.coverage.high) == (0, 0)


def test_nearest_others_count_repeats_and_survive_single_rows() -> None:
    rows = np.array([[1, 0], [0, 1], [1, 0], [1, 1], [2, 0]], np.float32)
    expected = [0, 1 - np.sqrt(0.5), 0, 1 - np.sqrt(0.5), 0]
    np.testing.assert_allclose(nearest_others(rows), expected, atol=1e-7)
    assert nearest_others(rows[:1]).tolist() == [np.inf]
    assert nearest_others(rows[[0, 0]]).tolist() == [0, 0]
    with pytest.raises(ValueError, match="all zeros"):
        nearest_others(np.zeros((2, 2), np.float32))


def test_where_a_model_places_all_near_each_other_less_is_near() -> None:
    generator = np.random.default_rng(0)
    vectors = (10 + generator.normal(size=(200, 16))).astype(np.float32)
    random = np.arange(40)
    known = _facts_of(vectors, ["one"] * 200, np.arange(100, 140), random)
    assert known.radius == pytest.approx(np.median(_apart(vectors[random])) / 2, rel=1e-4)
    assert known.radius < 0.01
    assert known.crowding.random < 0.5
    assert (known.drift.variation, known.drift.chance) == (0, 0)


@pytest.mark.parametrize("rows", [[0], [0, 1, 2], [1, 1, 1, 1, 1, 1]])
def test_small_whole_and_repeated_sets(rows: list[int]) -> None:
    vectors = np.eye(3, dtype=np.float32)
    selected, random = np.array(rows), random_rows(3, len(rows), np.random.default_rng(0))
    known = _facts_of(vectors, ["a", "b", "b"], selected, random)
    assert known.picks == len(rows)
    assert known.crowding.selected == (1.0 if len(rows) > 3 else 0.0)
    assert explain(compared(RANDOM), known, settings()).sentences


def test_a_long_source_is_shortened() -> None:
    named = facts(drift=DRIFT.model_copy(update={"source": "x" * 300}))
    sentence = explain(compared(RANDOM), named, settings()).sentences[1]
    assert f"“{'x' * 39}…”" in sentence


@pytest.mark.parametrize("strategy", ["novelselect", "random"])
def test_select_compares_as_the_report_of_a_run_does(tmp_path: Path, strategy: str) -> None:
    write_jsonl(tmp_path / "pool" / "one.jsonl", alpaca(40))
    made = curate(write_settings(tmp_path, selection={"k": 10, "strategy": strategy}, novelsum={"neighbors": 3}))
    report, pool = made.made["novelsum_report"], made.made["raw_pool"]
    _, vectors = pool_vectors(made.root, pool, made.made["embeddings"])
    files, reporter = EmbeddedFiles(pool, made.root, vectors, Cut(40, 0, 1, 0)), LogReporter(lambda line: None)
    chosen, powers = made.settings.selection, made.settings.novelsum
    choice = choose(files, chosen, powers, reporter)
    found = beside_random(files, choice, chosen, powers, reporter, "cpu")
    if strategy == "random":
        assert found == ()
        return
    assert found == report.compared
    written = json.loads((made.root / report.folder / "novelsum.json").read_text())["explanation"]
    assert Explanation.model_validate(written) == report.explanation
    whole = choose(files, chosen.model_copy(update={"k": 40}), powers, reporter)
    assert beside_random(files, whole, chosen, powers, reporter, "cpu") == ()


def _select(folder: Path, vectors: np.ndarray, *options: str) -> Any:
    """Choose 15 of a pool with these vectors by the command line."""
    write_jsonl(folder / "pool.jsonl", [{**record, "key": row} for row, record in enumerate(alpaca(len(vectors)))])
    table = pa.table({"key": range(len(vectors)), "vector": list(vectors)})
    pq.write_table(table, folder / "vectors.parquet")
    given = ["--vectors", str(folder / "vectors.parquet"), "--vectors-id", "key", "-k", "15", *options]
    done = CliRunner().invoke(app, ["select", str(folder / "pool.jsonl"), "-o", str(folder / "subset.jsonl"), *given])
    assert done.exit_code == 0, done.output
    return done


def test_select_says_when_the_subset_is_less_diverse_than_a_random_one(tmp_path: Path) -> None:
    even, repeats = np.random.default_rng(0).normal(size=(80, 16)).astype(np.float32), ("--strategy", "duplicate")
    done = _select(tmp_path, even, *repeats)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("Less diverse")]
    counts = re.match(r"Less diverse than a random subset by (\d+) of (\d+) measures \(", line)
    assert counts is not None
    behind, total = map(int, counts.groups())
    assert 2 * behind > total
    assert len(line.rpartition("measures compared: ")[2].split(", ")) == total
    rows = json.loads(_select(tmp_path, even, *repeats, "--json").stdout)["compared"]
    assert [row["more_diverse"] for row in rows].count(RANDOM) == behind
    assert len(rows) == total


def test_select_says_nothing_of_a_subset_that_is_more_diverse(tmp_path: Path) -> None:
    even = np.random.default_rng(0).normal(size=(80, 16)).astype(np.float32)
    assert "Less diverse" not in _select(tmp_path, even).output
    assert json.loads(_select(tmp_path, even, "--strategy", "random", "--json").stdout)["compared"] == []
