"""The study, run for real on a tiny scale: every step against the function that it stands for, and what is kept."""

import csv
import io
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity import novelsum_grid
from novelsum_dagster.diversity.clusters import Partition, cluster_inertia, partition_entropy
from novelsum_dagster.diversity.dcscore import dcscore
from novelsum_dagster.diversity.density import Search, densities
from novelsum_dagster.diversity.distances import distsum_l2, facility_location, knn_distance
from novelsum_dagster.diversity.lexical import ttr, vocd_d
from novelsum_dagster.diversity.measures import MEASURES, Samples, Value, measure_sets
from novelsum_dagster.diversity.moments import distsum_cosine, log_determinant, radius, vendi_score
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.store import VectorSet, embed, pool_vectors
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.strategies import STRATEGIES, select
from novelsum_dagster.settings import Embedding, Measures, NovelSum, Pool, Settings, Source, Strategy, Study, Training
from novelsum_dagster.study.correlate import (
    Outcome,
    StudyCorrelation,
    joined,
    outcome_json,
    proxy_performance,
    read_performance,
    read_scatter,
    write_outcome,
)
from novelsum_dagster.study.correlation import ALL_SETS, SELECTING, records
from novelsum_dagster.study.pool import StudyData, StudyPool, build_study_pool
from novelsum_dagster.study.run import correlate
from novelsum_dagster.study.sets import (
    UNSEEDED,
    GridValue,
    Recipe,
    StudyMeasures,
    StudyPerformance,
    StudySet,
    build_set,
    measure_set,
    performance_of,
    recipes,
    study_evaluator,
    train_on_set,
)
from novelsum_dagster.study.training import held_out_rows, train_and_evaluate
from tests.pools import alpaca, write_jsonl
from tests.tiny import tiny_model

SCATTER = Path(__file__).resolve().parents[1] / "golden" / "paper-scatter.csv"
EVERY: tuple[Strategy, ...] = (
    "novelselect", "random", "farthest", "kmeans", "kcenter", "qdit", "repr_filter", "gist", "duplicate",
)  # fmt: skip
STUDY = Study(
    sizes=(18, 12),
    strategies=("random", "farthest", "duplicate"),
    seeds=(7, 8),
    copies=(3,),
    held_out=5,
    neighbors=(3,),
    density_powers=(0, 0.5),
    proximity_powers=(0, 2),
    training=Training(tokens=2000, context=16, batch_size=64, vocabulary=300),
)
SETTINGS = Settings(
    device="cpu",
    embedding=Embedding(model=tiny_model(), dtype="float32"),
    novelsum=NovelSum(neighbors=4, density_power=0.25),
    measures=Measures(ttr_tokens=150, knn_neighbor=2, inertia_clusters=4, partition_clusters=8, ridge=0.5),
    study=STUDY,
)
QUIET = LogReporter(lambda text: None)


@dataclass
class Made:
    """A pool of three sources, embedded; and where it lies."""

    root: Path
    snapshot: PoolSnapshot
    vectors: VectorSet

    def correlate(self, settings: Settings = SETTINGS) -> tuple[StudyCorrelation, Outcome]:
        return correlate(self.root, self.snapshot, self.vectors, settings, QUIET)

    def pool(self, settings: Settings = SETTINGS) -> StudyPool:
        return build_study_pool(self.root, self.snapshot, self.vectors, settings.novelsum, settings.study)

    def data(self, settings: Settings = SETTINGS) -> StudyData:
        return StudyData(self.root, self.snapshot, self.vectors, self.pool(settings))

    def files(self) -> dict[Path, tuple[int, int]]:
        """Every file of the study, with what changes when it is written again."""
        found = (path for path in (self.root / "study").rglob("*") if path.is_file())
        return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in found}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Work so small gains nothing from a second thread, and waits for it where the machine is busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("study")
    for number, name in enumerate(("one", "two", "three")):
        write_jsonl(folder / f"{name}.jsonl", alpaca(30 + number, start=40 * number))
    root = folder / "curated"
    pool = Pool(sources=tuple(Source(path=f"{name}.jsonl") for name in ("one", "two", "three")))
    snapshot = build_snapshot(pool, folder, root, token_counter(SETTINGS.embedding))
    samples = snapshot.samples(root, ["id", "text"])
    ids, texts = samples["id"].to_pylist(), samples["text"].to_pylist()
    return Made(root, snapshot, embed(root, SETTINGS.embedding, ids, texts, snapshot.key, device="cpu"))


@pytest.fixture(scope="module")
def data(made: Made) -> StudyData:
    return made.data()


@pytest.fixture(scope="module")
def outcome(made: Made) -> tuple[StudyCorrelation, Outcome]:
    return made.correlate()


def _sets(data: StudyData, settings: Settings = SETTINGS) -> dict[str, StudySet]:
    return {name: build_set(data, recipe, settings.novelsum) for name, recipe in recipes(settings.study).items()}


def _measured(data: StudyData, one: StudySet, settings: Settings = SETTINGS) -> StudyMeasures:
    evaluator = study_evaluator(data, settings)
    return measure_set(data, one, settings, evaluator, QUIET)


def _changed(**study: Any) -> Settings:
    return SETTINGS.model_copy(update={"study": STUDY.model_copy(update=study)})


# Which sets there are.


def test_recipes_name_every_set_once() -> None:
    study = Study(sizes=(20, 10), strategies=EVERY, seeds=(3, 4), copies=(2, 5))
    planned = recipes(study)
    assert [name for name in planned if "-20-" in name] == [
        "novelselect-20-s3", "novelselect-20-s4", "random-20-s3", "random-20-s4", "farthest-20-s3", "kmeans-20-s3",
        "kmeans-20-s4", "kcenter-20-s3", "kcenter-20-s4", "qdit-20-s3", "repr_filter-20-s3", "repr_filter-20-s4",
        "gist-20-s3", "gist-20-s4", "duplicate-20-s3-x2", "duplicate-20-s3-x5", "duplicate-20-s4-x2",
        "duplicate-20-s4-x5",
    ]  # fmt: skip
    assert len(planned) == 36
    assert all(recipe.name == name for name, recipe in planned.items())
    assert planned["duplicate-10-s4-x5"] == Recipe(
        name="duplicate-10-s4-x5", strategy="duplicate", size=10, seed=4, copies=5
    )
    assert {recipe.copies for recipe in planned.values() if recipe.strategy != "duplicate"} == {1}
    again = Study(
        sizes=(20, 10, 20), strategies=(*EVERY, "random"), seeds=(3, 4, 3), copies=(2, 5, 2)
    )  # Named twice is there once.
    assert recipes(again) == planned


def test_every_strategy_is_in_the_default_study() -> None:
    assert {recipe.strategy for recipe in recipes(Study()).values()} == set(STRATEGIES)


@pytest.mark.parametrize("strategy", EVERY)
def test_a_strategy_has_a_set_a_seed_where_it_draws(data: StudyData, strategy: Strategy) -> None:
    factor = data.own.factor(4, 0.25)
    first, second = (
        select(strategy, data.own.vectors, 12, density_factor=factor, seed=seed).indices for seed in (7, 8)
    )
    assert np.array_equal(first, second) == (strategy in UNSEEDED)


# The pool.


def test_the_split_holds_out_as_many_of_each_source(made: Made, data: StudyData) -> None:
    pool = data.pool
    samples = made.snapshot.samples(made.root, ["source", "text"]).to_pylist()
    table = pq.read_table(made.root / pool.file, partitioning=None)
    flags = table["held_out"].to_numpy()
    ids, _ = pool_vectors(made.root, made.snapshot, made.vectors)
    assert table["id"].to_pylist() == ids
    counts = Counter(row["source"] for row, out in zip(samples, flags, strict=True) if out)
    assert len(counts) == 3 and set(counts.values()) == {5}
    assert np.array_equal(np.flatnonzero(flags), held_out_rows([row["source"] for row in samples], 5, 7))
    assert (pool.samples, pool.held_out) == (len(samples) - 15, 15)
    assert len(data.ids) == len(data.texts) == len(data.own.vectors) == pool.samples
    assert {source: len(texts) for source, texts in data.held_out.items()} == dict(counts)
    assert sorted(text for texts in data.held_out.values() for text in texts) == sorted(
        row["text"] for row, out in zip(samples, flags, strict=True) if out
    )
    assert data.texts == [row["text"] for row, out in zip(samples, flags, strict=True) if not out]


def test_density_is_that_of_the_samples_that_are_left(made: Made, data: StudyData) -> None:
    table = pq.read_table(made.root / data.pool.file, partitioning=None)
    flags = table["held_out"].to_numpy()
    _, rows = pool_vectors(made.root, made.snapshot, made.vectors)
    found = densities(rows[~flags], None, (3, 4), Search())
    assert np.array_equal(data.own.vectors, rows[~flags])
    for k in (3, 4):
        column = table[f"mean_squared_distance_{k}"]
        assert column.filter(pa.array(flags)).null_count == 15
        np.testing.assert_array_equal(column.filter(pa.array(~flags)).to_numpy(), found[k].mean_squared_distance)
        for beta in (0, 0.25, 0.5):
            np.testing.assert_array_equal(data.own.factor(k, beta), found[k].factor(beta))


def test_a_source_too_small_to_hold_out_from_is_named(made: Made) -> None:
    with pytest.raises(InputError, match=r"7 held-out samples a source are more than a fifth of one.*at most 6"):
        made.pool(_changed(held_out=7))


def test_vectors_of_another_pool_are_refused(made: Made) -> None:
    other = made.vectors.model_copy(update={"ids_from": "another", "key": "other"})
    with pytest.raises(InputError, match="embeddings belong to pool snapshot another"):
        build_study_pool(made.root, made.snapshot, other, SETTINGS.novelsum, STUDY)


# The sets.


def test_sets_are_what_select_picks(made: Made, data: StudyData) -> None:
    settings = _changed(strategies=EVERY, sizes=(10,), copies=(2, 5))
    split = pq.read_table(made.root / data.pool.file, partitioning=None)
    held_out = set(split["id"].filter(split["held_out"]).to_pylist())
    sets = _sets(data, settings)
    assert len(sets) == 18
    for one in sets.values():
        recipe = one.recipe
        options: dict[str, Any] = {"copies": recipe.copies} if recipe.strategy == "duplicate" else {}
        if recipe.strategy == "novelselect":
            options["proximity_power"] = 1.0
        expected = select(
            recipe.strategy, data.own.vectors, 10, density_factor=data.own.factor(4, 0.25), seed=recipe.seed, **options
        )
        rows = one.rows(made.root)
        assert rows.tolist() == np.asarray(expected.indices).tolist()
        ids = pq.read_table(made.root / one.file, partitioning=None)["id"].to_pylist()
        assert ids == [data.ids[row] for row in rows]
        assert not held_out & set(ids)
        assert len(ids) == 10
        assert len(set(ids)) == -(-10 // recipe.copies)


def test_a_set_larger_than_the_pool_is_refused(data: StudyData) -> None:
    recipe = Recipe(name="random-99-s7", strategy="random", size=99, seed=7)
    with pytest.raises(ValueError, match=r"k must be from 1 to 78"):
        build_set(data, recipe, SETTINGS.novelsum)


# The measures.


def test_measures_are_those_of_the_functions(made: Made, data: StudyData) -> None:
    one = _sets(data)["random-12-s8"]
    found = _measured(data, one)
    rows = one.rows(made.root)
    vectors, texts = data.own.vectors[rows], [data.texts[row] for row in rows]
    expected = {
        "ttr": ttr(texts, tokens=150, seed=7),
        "vocd_d": vocd_d(texts, seed=7),
        "distsum_cosine": distsum_cosine(vectors),
        "distsum_l2": distsum_l2(vectors),
        "knn_distance": knn_distance(vectors, neighbor=2),
        "cluster_inertia": cluster_inertia(vectors, clusters=4, seed=7),
        "radius": radius(vectors),
        "facility_location": facility_location(vectors, data.own.vectors),
        "partition_entropy": partition_entropy(vectors, partition=Partition.of(data.own.vectors, clusters=8, seed=7)),
        "vendi_score": vendi_score(vectors),
        "log_determinant": log_determinant(vectors, ridge=0.5),
        "dcscore": dcscore(vectors),
    }
    assert set(found.values) == {"novelsum", *expected} == set(MEASURES) - {"g_vendi"}
    for name, of_function in expected.items():
        low, high = of_function.interval()
        assert found.values[name].value == pytest.approx(of_function.value), name
        assert (found.values[name].low, found.values[name].high) == pytest.approx((low, high)), name


def test_the_grid_is_that_of_novelsum_grid(made: Made, data: StudyData) -> None:
    one = _sets(data)["duplicate-12-s7-x3"]
    found = _measured(data, one)
    expected = novelsum_grid(
        data.own.vectors[one.rows(made.root)],
        data.own.vectors,
        neighbors=(4, 3),
        density_powers=(0.25, 0, 0.5),
        proximity_powers=(1, 0, 2),
    )
    values = {(row.neighbors, row.density_power, row.proximity_power): row.value for row in found.grid}
    assert values == pytest.approx({tuple(powers): result.value for powers, result in expected.items()})
    assert len(found.grid) == 18
    first = found.grid[0]
    assert (first.neighbors, first.density_power, first.proximity_power) == (4, 0.25, 1.0)  # That of the settings.
    assert found.values["novelsum"].value == first.value


def test_a_set_is_measured_whole_whatever_other_sizes_there_are(made: Made, data: StudyData) -> None:
    """Compare with `measure_sets`, which measures one set alone whole."""
    sets = _sets(data)
    evaluator = study_evaluator(data, SETTINGS)
    for name, size in (("random-18-s7", 18), ("random-12-s7", 12)):
        found, rows = _measured(data, sets[name]), sets[name].rows(made.root)
        assert found.measured == len(rows) == size
        samples = {name: Samples(data.own.vectors[rows], [data.texts[row] for row in rows])}
        (alone,) = measure_sets(samples, evaluator, seed=7, reporter=QUIET).sets
        assert {key: value.value for key, value in found.values.items()} == pytest.approx(
            {key: value.value for key, value in alone.values.items()}
        )
        assert list(found.values) == list(alone.values)


def test_too_few_words_leave_ttr_out(data: StudyData) -> None:
    settings = SETTINGS.model_copy(update={"measures": SETTINGS.measures.model_copy(update={"ttr_tokens": 10**6})})
    found = _measured(data, _sets(data)["random-12-s7"], settings)
    assert set(MEASURES) - set(found.values) == {"ttr", "g_vendi"}


def test_measures_of_equal_samples_are_kept_and_read_back(data: StudyData) -> None:
    """One sample twelve times: no value may be lost in JSON, which knows no infinity."""
    one = build_set(data, Recipe(name="same", strategy="duplicate", size=12, seed=7, copies=12), SETTINGS.novelsum)
    first, second = _measured(data, one), _measured(data, one)
    assert first == second
    assert first.values["novelsum"].value == 0
    assert all(math.isfinite(number) for value in first.values.values() for number in vars(value).values())


# Performance.


def test_performance_is_that_of_a_model_trained_on_the_set(made: Made, data: StudyData) -> None:
    one = _sets(data)["random-18-s8"]
    steps: list[tuple[int, int]] = []
    found = train_on_set(data, one, STUDY.training, 7, lambda done, total: steps.append((done, total)))
    texts = [data.texts[row] for row in one.rows(made.root)]
    expected = train_and_evaluate(texts, data.held_out, STUDY.training, data.tokenizer, seed=7)
    assert found.losses == expected
    assert len(expected) == 3
    assert not steps or steps[-1] == (2000, 2000)


# What becomes of all sets.


def _of(name: str, strategy: Strategy, **values: float) -> StudyMeasures:
    value = values.get("novelsum", 0.0)
    return StudyMeasures(
        key=name,
        study_set=name,
        recipe=Recipe(name=name, strategy=strategy, size=3, seed=1),
        measured=3,
        values={key: Value(value, value, value) for key, value in values.items()},
        grid=(
            GridValue(neighbors=1, density_power=0, proximity_power=0, value=-value),
            GridValue(neighbors=1, density_power=0, proximity_power=1, value=0),
            GridValue(neighbors=1, density_power=0, proximity_power=2, value=value),
        ),
    )


def _coefficients(outcome: Outcome, measure: str, method: str = "pearson") -> dict[str, float | None]:
    return {one.group: one.r for one in outcome.correlations if one.measure == measure and one.method == method}


def test_joined_turns_the_sign_where_lower_is_more_diverse() -> None:
    strategies: dict[str, Strategy] = {"a": "random", "b": "random", "c": "random", "d": "kmeans"}
    measured = {
        name: _of(name, strategy, novelsum=value, facility_location=-value)
        for value, (name, strategy) in enumerate(strategies.items(), 1)
    }
    found = joined(measured, {"d": 8, "c": 6, "b": 4, "a": 2}, "words")
    for measure in ("novelsum", "facility_location"):
        assert _coefficients(found, measure) == {
            ALL_SETS: pytest.approx(1),
            SELECTING: None,
            "random": pytest.approx(1),
        }
    assert found.sets["facility_location"].to_pylist() == [-1, -2, -3, -4]  # As measured.
    assert found.sets["performance"].to_pylist() == [2, 4, 6, 8]
    assert [(row["proximity_power"], row["pearson"]) for row in found.grid] == [
        (2, pytest.approx(1)), (0, pytest.approx(-1)), (1, None),
    ]  # fmt: skip


def test_joined_leaves_sets_without_a_measure_out_of_its_coefficient() -> None:
    measured = {
        name: _of(name, "random", novelsum=number, **({} if name == "c" else {"ttr": number}))
        for number, name in enumerate("abcd")
    }
    found = joined(measured, dict(zip("abcd", (1.0, 2.0, 9.0, 4.0), strict=True)), "words")
    counts = {one.measure: one.sets for one in found.correlations if one.group == ALL_SETS}
    assert counts == {"novelsum": 4, "ttr": 3}
    assert _coefficients(found, "ttr")[ALL_SETS] == pytest.approx(1)
    assert found.sets["ttr"].to_pylist() == [0, 1, None, 3]
    assert found.measures == {"novelsum": "NovelSum", "ttr": "TTR"}


@pytest.mark.parametrize(
    ("performance", "message"),
    [
        ({"a": 1.0}, "no performance for 1 of 2 sets: b"),
        ({"a": 1.0, "b": 2.0, "x": 3.0}, "performance of 1 sets that the study does not have: x; its sets are a, b"),
    ],
)
def test_joined_wants_performance_of_exactly_the_sets(performance: dict[str, float], message: str) -> None:
    measured = {name: _of(name, "random", novelsum=1) for name in "ab"}
    with pytest.raises(InputError, match=message):
        joined(measured, performance, "words")


def test_the_proxy_turns_losses_so_that_higher_is_better() -> None:
    recipe = Recipe(name="a", strategy="random", size=3, seed=1)
    trained = {
        name: StudyPerformance(key=name, study_set=name, recipe=recipe, losses=losses, trials={1: losses})
        for name, loss in (("a", 3.0), ("b", 1.0), ("c", 2.0))
        for losses in [{"one": loss, "two": 10 * loss}]
    }
    found = proxy_performance(trained)
    assert found["b"] > found["c"] > found["a"]
    assert sum(found.values()) == pytest.approx(0)
    with pytest.raises(InputError, match="at least 2"):
        proxy_performance({"a": trained["a"]})


# Figures from files.


def _bom(text: str) -> bytes:
    return b"\xef\xbb\xbf" + text.encode()


@pytest.mark.parametrize(
    "content",
    [
        b"set,performance\na,1.5\nb,-2e-1\n",
        b"performance,notes,set\n-0.2,,b\n\n1.5,\"fine, then\",a",
        _bom("set,performance\r\n\"a\",1.5\r\n\"b\",\"-0.2\"\r\n"),
        b'"set","performance"\n"a"," 1.5 "\n"b",-.2\n\n\n',
    ],
    ids=["plain", "any order, empty lines", "BOM, CRLF, quotes", "quoted header"],
)  # fmt: skip
def test_performance_is_read_from_any_csv(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "figures.csv").write_bytes(content)
    found = read_performance(tmp_path / "figures.csv", ["a", "b"])
    assert list(found.items()) == [("a", 1.5), ("b", -0.2)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("set,performance\na,1\nx,2\nb,3\n", ":3: the study has no set 'x'; its sets are a, b"),
        ("set,performance\na,1\n,2\n", ":3: the study has no set ''"),
        ("set,performance\nb,1\n", ": no performance for 1 of 2 sets: a"),
        ("set,performance\na,1\nb,2\na,1\n", ":4: set a is listed twice"),
        ("set,performance\na,1\nb,good\n", ":3: performance is 'good'; it must be a number"),
        ("set,performance\na,NaN\nb,1\n", ":2: performance is 'NaN'; it must be a number"),
        ("set,performance\na,1\nb,-inf\n", ":3: performance is '-inf'; it must be a number"),
        ("set,performance\na,\nb,1\n", ":2: performance is ''; it must be a number"),
        ("set,performance\na\nb,1\n", ":2: has 1 values in place of 2"),
        ("set,performance\na,1,5\nb,1\n", ":2: has 3 values in place of 2"),
        ("", ": has no column performance; it has none"),
        ("\n\n", ": has no column performance; it has none"),
        ("set,performance\n", ": has no rows"),
        ("set;performance\na;1\n", ": has no column performance; it has set;performance"),
        ("name,performance\na,1\n", ": has no column set; it has name, performance"),
        ("set,performance,set\na,1,b\n", ": has two columns set"),
        ('set,performance\n"a,1\nb,2\n', ": cannot be read as CSV: unexpected end of data"),
        # The line is that of the file, whatever stands before it.
        ('\nset,notes,performance\na,"two\nlines",1\n\nb,,x\n', ":6: performance is 'x'; it must be a number"),
    ],
)
def test_a_performance_file_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "figures.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_performance(path, ["a", "b"])
    assert str(caught.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("read", [lambda path: read_performance(path, ["a"]), read_scatter])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    path = tmp_path / "figures.csv"
    path.write_bytes("set,strategy,performance\na,b,1\n".encode("utf-16"))
    for where in (path, tmp_path, tmp_path / "missing.csv"):
        with pytest.raises(InputError, match=f"{where}: cannot be read as CSV"):
            read(where)


def test_the_figures_of_the_paper_correlate_as_in_the_paper() -> None:
    found = read_scatter(SCATTER)
    assert found.measures == {"novelsum": "NovelSum"}
    assert found.sets.num_rows == 39
    assert found.sets["set"].to_pylist() == [str(number) for number in range(1, 40)]
    for method, everywhere, selecting in (("pearson", 0.976, 0.81), ("spearman", 0.979, 0.75)):
        of_group = _coefficients(found, "novelsum", method)
        assert of_group[ALL_SETS] == pytest.approx(everywhere, abs=5e-4)
        assert of_group[SELECTING] == pytest.approx(selecting, abs=5e-3)
    assert (found.grid, found.performance) == ([], "column of paper-scatter.csv")


def test_a_table_may_have_sets_and_measures_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(
        _bom('set,size,strategy,facility_location,"my, own",performance\r\n'
             'a,5,one,-1,4,1\r\n"b, c",5,two,-2,3,2\r\n,5,two,-3,2,3\r\nd,5,two,-4,1,4\r\n')
    )  # fmt: skip
    found = read_scatter(path)
    assert found.measures == {"facility_location": "Facility location", "my, own": "my, own"}
    assert found.sets["set"].to_pylist() == ["a", "b, c", "3", "d"]
    assert _coefficients(found, "facility_location")["two"] == pytest.approx(1)
    assert _coefficients(found, "my, own")["two"] == pytest.approx(-1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("strategy,performance\na,1\n", ": has no column besides strategy and performance"),
        ("novelsum,performance\n1,1\n", ": has no column strategy; it has novelsum, performance"),
        (",strategy,performance\n0,a,1\n", ": has a column without a name"),
        ("strategy,novelsum,performance\na,1,1\nb,,2\n", ":3: novelsum is ''; it must be a number"),
        ("strategy,novelsum,performance\na,1,1\nb,2,nan\n", ":3: performance is 'nan'; it must be a number"),
        ("strategy,novelsum,performance\na,1,1,9\n", ":2: has 4 values in place of 3"),
        ("performance,novelsum,strategy\n1,1\n", ":2: has 2 values in place of 3"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(content)
    with pytest.raises(InputError) as caught:
        read_scatter(path)
    assert str(caught.value).startswith(f"{path}{message}")


# The whole study.


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _as_text(rows: list[dict[str, Any]]) -> list[dict[str, str | float]]:
    """Rows as comparable with those of a CSV file: null is empty, numbers are numbers."""

    def comparable(value: Any) -> str | float:
        if value is None:
            return ""
        try:
            return float(value)
        except ValueError:
            return str(value)

    return [{name: comparable(value) for name, value in row.items()} for row in rows]


def test_the_outcome_joins_every_set(made: Made, data: StudyData, outcome: tuple[StudyCorrelation, Outcome]) -> None:
    kept, found = outcome
    sets = _sets(data)
    assert list(sets) == list(recipes(STUDY)) == found.sets["set"].to_pylist()
    assert kept.sets == len(sets) == 10
    performance = proxy_performance(
        {name: performance_of({7: train_on_set(data, one, STUDY.training, 7)}) for name, one in sets.items()}
    )
    assert found.sets["performance"].to_pylist() == list(performance.values())
    for row, one in zip(found.sets.to_pylist(), sets.values(), strict=True):
        assert {key: row[key] for key in MEASURES if key != "g_vendi"} == {
            key: value.value for key, value in _measured(data, one).values.items()
        }
        assert (row["strategy"], row["size"], row["seed"], row["copies"]) == (
            one.recipe.strategy, one.recipe.size, one.recipe.seed, one.recipe.copies,
        )  # fmt: skip
    assert "2,000 tokens a set" in found.performance == kept.performance
    assert len(found.grid) == 18
    assert [row["pearson"] for row in found.grid] == sorted((row["pearson"] for row in found.grid), reverse=True)
    own = next(row for row in found.grid if list(row.values())[:3] == [4, 0.25, 1.0])
    for method in ("pearson", "spearman", "kendall"):
        assert own[method] == _coefficients(found, "novelsum", method)[ALL_SETS]


def test_the_files_of_the_outcome_agree(made: Made, outcome: tuple[StudyCorrelation, Outcome]) -> None:
    kept, found = outcome
    folder = made.root / kept.folder
    pictures = {"scatter.png", "measures.png", "correlations.png"}
    tables = {f"{name}.{ending}" for name in ("sets", "correlations", "grid") for ending in ("csv", "parquet")}
    assert {path.name for path in folder.iterdir()} == {"outcome.json", *pictures, *tables}
    written = json.loads((folder / "outcome.json").read_text())
    assert written == json.loads(json.dumps(outcome_json(found)))
    assert written["performance"] == kept.performance
    for name in ("sets", "correlations", "grid"):
        assert pq.read_table(folder / f"{name}.parquet").to_pylist() == written[name]
        assert _as_text(_csv(folder / f"{name}.csv")) == _as_text(written[name])
    assert written["correlations"] == records(found.correlations)
    for name in pictures:
        with Image.open(io.BytesIO((folder / name).read_bytes())) as picture:
            assert picture.format == "PNG" and min(picture.size) > 200


def test_a_table_is_written_without_a_grid(tmp_path: Path) -> None:
    write_outcome(read_scatter(SCATTER), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "sets.csv", "sets.parquet", "correlations.csv", "correlations.parquet", "outcome.json", "scatter.png",
        "measures.png", "correlations.png",
    }  # fmt: skip


def test_a_second_study_does_nothing_again(made: Made, outcome: tuple[StudyCorrelation, Outcome]) -> None:
    before = made.files()
    kept, found = made.correlate()
    assert kept == outcome[0]
    assert outcome_json(found) == outcome_json(outcome[1])
    assert made.files() == before


def test_a_study_that_was_broken_off_does_only_what_is_missing(
    made: Made, data: StudyData, outcome: tuple[StudyCorrelation, Outcome]
) -> None:
    before = made.files()
    folder = made.root / outcome[0].folder
    bytes_before = {path: path.read_bytes() for path in before}
    sets = _sets(data)
    lost_set, lost_measures, lost_training = (sets[name] for name in ("random-18-s7", "random-12-s7", "farthest-12-s7"))
    gone = [
        made.root / "study" / f"set={lost_set.key}" / "study_set.json",
        made.root / "study" / f"measures={_measured(data, lost_measures).key}.json",
        made.root / "study" / f"performance={train_on_set(data, lost_training, STUDY.training, 7).key}.json",
        *folder.iterdir(),
    ]
    for path in gone:
        path.unlink()
    folder.rmdir()
    assert made.correlate()[0] == outcome[0]
    assert {path: path.read_bytes() for path in made.files()} == bytes_before
    again = {path for path, stamp in made.files().items() if stamp != before[path]}
    assert again == {*gone, made.root / lost_set.file}


def test_a_damaged_result_is_named(made: Made, data: StudyData, outcome: tuple[StudyCorrelation, Outcome]) -> None:
    one = _sets(data)["random-12-s8"]
    for path in (
        made.root / "study" / f"set={one.key}" / "study_set.json",
        made.root / "study" / f"measures={_measured(data, one).key}.json",
        made.root / "study" / f"performance={train_on_set(data, one, STUDY.training, 7).key}.json",
        made.root / "study" / f"pool={data.pool.key}" / "study_pool.json",
    ):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        try:
            with pytest.raises(ValueError, match="damaged") as caught:
                made.correlate()
        finally:
            path.write_bytes(whole)
        assert str(path) in str(caught.value) and "delete it" in str(caught.value)


def _keys(made: Made, settings: Settings) -> dict[str, str]:
    """The keys of the pool, and of the last set's steps."""
    data = made.data(settings)
    recipe = list(recipes(settings.study).values())[-1]
    one = build_set(data, recipe, settings.novelsum)
    return {
        "pool": data.pool.key,
        "set": one.key,
        "measures": _measured(data, one, settings).key,
        "performance": train_on_set(data, one, settings.study.training, settings.study.seeds_of_training[0]).key,
    }


def _with(section: str, **values: Any) -> Settings:
    changed: Mapping[str, Any] = {section: getattr(SETTINGS, section).model_copy(update=values)}
    return SETTINGS.model_copy(update=changed)


def _training(**values: Any) -> Settings:
    return _changed(training=STUDY.training.model_copy(update=values))


ALL_KEYS = {"pool", "set", "measures", "performance"}


@pytest.mark.parametrize(
    ("settings", "differ"),
    [
        (_with("selection", k=5, seed=3), set()),
        (_with("checks", max_source_growth=9), set()),
        (SETTINGS.model_copy(update={"device": "auto"}), set()),
        (_training(tokens=2100), {"performance"}),
        (_training(context=17), {"performance"}),
        (_training(batch_size=32), {"performance"}),
        (_training(learning_rate=0.01), {"performance"}),
        (_training(vocabulary=310), ALL_KEYS),
        (_changed(held_out=4), ALL_KEYS),
        (_changed(neighbors=(2,)), ALL_KEYS),
        (_changed(density_powers=(0.1,)), {"measures"}),
        (_changed(proximity_powers=(1.5,)), {"measures"}),
        (_changed(sizes=(18, 10, 12)), set()),
        (_changed(seeds=(9, 8)), ALL_KEYS),
        (_changed(strategies=("random", "duplicate")), set()),
        (_with("measures", ttr_tokens=100), {"measures"}),
        (_with("novelsum", self_distance="excluded"), {"measures"}),
        (_with("novelsum", proximity_power=3.0), {"set", "measures", "performance"}),
        (_with("novelsum", neighbor_policy="self"), ALL_KEYS),
    ],
)
def test_a_key_changes_with_the_settings_that_matter(made: Made, settings: Settings, differ: set[str]) -> None:
    usual, found = _keys(made, SETTINGS), _keys(made, settings)
    assert {name for name in usual if usual[name] != found[name]} == differ


def test_figures_of_a_file_take_the_place_of_training(
    made: Made, tmp_path: Path, outcome: tuple[StudyCorrelation, Outcome]
) -> None:
    names = list(recipes(STUDY))
    rows = "".join(f"{name},{number}\n" for number, name in enumerate(names))
    (tmp_path / "figures.csv").write_text("set,performance\n" + rows)
    settings = _changed(performance="figures.csv").model_copy(update={"base": tmp_path})
    before = made.files()
    kept, found = made.correlate(settings)
    assert found.sets["performance"].to_pylist() == list(range(10))
    assert found.performance == kept.performance == "figures of figures.csv"
    new = set(made.files()) - set(before)
    assert {path.parent for path in new} == {made.root / kept.folder}
    assert kept.key != outcome[0].key
    for name in set(MEASURES) - {"g_vendi"}:
        assert found.sets[name].equals(outcome[1].sets[name])


def test_figures_that_do_not_fit_are_refused_before_any_work(made: Made, tmp_path: Path) -> None:
    (tmp_path / "figures.csv").write_text("set,performance\nrandom-1-s1,1\n")
    settings = _changed(performance="figures.csv", held_out=3).model_copy(update={"base": tmp_path})
    before = made.files()
    with pytest.raises(InputError, match=r"figures\.csv:2: the study has no set 'random-1-s1'"):
        made.correlate(settings)
    assert made.files() == before
