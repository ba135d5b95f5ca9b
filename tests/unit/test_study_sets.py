"""What a study has beyond plain strategies: variants, other vectors, an unseen source, training seeds, plain facts."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from threadpoolctl import threadpool_limits

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import LogReporter
from novelsum_dagster.diversity.measures import Samples
from novelsum_dagster.embedding.encoder import load_encoder, token_counter
from novelsum_dagster.embedding.store import VectorSet, embed
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection.strategies import select
from novelsum_dagster.settings import (
    Embedding,
    GVendi,
    NovelSum,
    Pool,
    Representation,
    Settings,
    Source,
    Study,
    Training,
    Variant,
)
from novelsum_dagster.study.facts import Tokens, bigram_bits_per_byte, facts_of_set, share_close
from novelsum_dagster.study.pool import StudyData, build_study_pool
from novelsum_dagster.study.run import Studied, correlate
from novelsum_dagster.study.sets import Recipe, build_set, recipes, study_evaluator
from novelsum_dagster.study.tables import read_tables, tables_of, write_tables
from novelsum_dagster.study.training import train_and_evaluate
from novelsum_dagster.study.views import build_view, embedding_of
from tests.pools import alpaca, write_jsonl
from tests.tiny import tiny_model

QUIET = LogReporter(lambda text: None)
NAMES = ("one", "two", "three")
STUDY = Study(
    sizes=(8,),
    strategies=("random", "duplicate"),
    seeds=(8,),
    copies=(3,),
    variants=(
        Variant(name="column", strategy="novelselect", density_side="column"),
        Variant(name="by_prompt", strategy="kmeans", representation="prompt", kmeans={"clusters": 3}),
    ),
    representations=(
        Representation(name="prompt", text="prompt"),
        Representation(name="whitened", whiten=True, reduce=6),
    ),
    held_out=5,
    unseen="three",
    neighbors=(3,),
    density_powers=(0.5,),
    proximity_powers=(1,),
    training=Training(tokens=1500, context=16, batch_size=64, vocabulary=300),
    training_seeds=(1, 2),
)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


class Made:
    """A pool of three sources, embedded."""

    def __init__(self, folder: Path) -> None:
        for number, name in enumerate(NAMES):
            write_jsonl(folder / f"{name}.jsonl", alpaca(30 + number, start=40 * number))
        self.root = folder / "curated"
        self.settings = Settings(
            device="cpu",
            pool=Pool(sources=tuple(Source(path=f"{name}.jsonl") for name in NAMES)),
            embedding=Embedding(model=tiny_model(), dtype="float32"),
            novelsum=NovelSum(neighbors=4),
            study=STUDY,
            base=folder,
        )
        embedding = self.settings.embedding
        self.snapshot: PoolSnapshot = build_snapshot(self.settings.pool, folder, self.root, token_counter(embedding))
        samples = self.snapshot.samples(self.root, ["id", "text"])
        ids, texts = samples["id"].to_pylist(), samples["text"].to_pylist()
        self.vectors: VectorSet = embed(self.root, embedding, ids, texts, self.snapshot.key, device="cpu")

    def data(self, study: Study = STUDY) -> StudyData:
        pool = build_study_pool(self.root, self.snapshot, self.vectors, self.settings.novelsum, study)
        return StudyData(self.root, self.snapshot, self.vectors, pool)

    def correlate(self, study: Study = STUDY) -> list[Studied]:
        """Run the study; what it kept along the way."""
        kept: list[Studied] = []
        settings = self.settings.model_copy(update={"study": study})

        def keep(found: Studied) -> None:
            assert {len(trained) for trained in found.trainings.values()} <= {len(kept)}  # Whole seeds.
            kept.append(found)

        correlate(self.root, self.snapshot, self.vectors, settings, QUIET, keep)
        return kept


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def data(made: Made) -> StudyData:
    return made.data()


@pytest.fixture(scope="module")
def kept(made: Made) -> list[Studied]:
    return made.correlate()


@pytest.fixture(scope="module")
def studied(kept: list[Studied]) -> Studied:
    return kept[-1]


# Settings and recipes.


def test_variants_are_named_after_strategy_and_variant() -> None:
    planned = recipes(STUDY.model_copy(update={"seeds": (7, 8), "sizes": (12, 8)}))
    assert [name for name in planned if "-8-" in name] == [
        "random-8-s7", "random-8-s8", "duplicate-8-s7-x3", "duplicate-8-s8-x3", "novelselect-column-8-s7",
        "novelselect-column-8-s8", "kmeans-by_prompt-8-s7", "kmeans-by_prompt-8-s8",
    ]  # fmt: skip
    assert planned["novelselect-column-8-s7"].density_side == "column"
    by_prompt = planned["kmeans-by_prompt-8-s7"]
    assert (by_prompt.representation, by_prompt.options) == ("prompt", {"clusters": 3})
    one = Study(variants=(Variant(name="few", strategy="farthest"),), seeds=(1, 2), strategies=())
    assert list(recipes(one)) == ["farthest-few-1000-s1"]
    repeated = Study(variants=(Variant(name="many", strategy="duplicate", duplicate={"copies": 4}),), strategies=())
    assert {recipe.copies for recipe in recipes(repeated).values()} == {4}


def test_a_recipe_without_a_variant_is_described_as_before_there_were_any() -> None:
    plain = Recipe(name="random-8-s7", strategy="random", size=8, seed=7)
    assert plain.described == {"name": "random-8-s7", "strategy": "random", "size": 8, "seed": 7, "copies": 1}


@pytest.mark.parametrize(
    ("study", "message"),
    [
        ({"variants": [{"name": "a", "strategy": "kmeans", "density_side": "row"}]}, "density_side works with"),
        ({"variants": [{"name": "A b", "strategy": "kmeans"}]}, "must consist of lower-case letters"),
        ({"variants": [{"name": "a", "strategy": "kmeans"}] * 2}, "variants: a occurs twice"),
        ({"representations": [{"name": "own"}]}, "own means the vectors of embedding"),
        ({"representations": [{"name": "p"}] * 2}, "representations: p occurs twice"),
        (
            {"variants": [{"name": "a", "strategy": "kmeans", "representation": "p"}]},
            "a uses p, which is not among the representations: there are none",
        ),
        ({"name": "a/b"}, "name"),
    ],
)
def test_settings_that_do_not_fit_are_refused(study: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Study(**study)


def test_the_training_seed_is_the_first_of_seeds_where_none_is_named() -> None:
    assert Study(seeds=(5, 6)).seeds_of_training == (5,)
    assert Study(seeds=(5, 6), training_seeds=(1, 2, 1)).seeds_of_training == (1, 2)


# The unseen source.


def test_of_the_unseen_source_samples_are_evaluated_and_none_chosen(made: Made, data: StudyData) -> None:
    sources = dict(
        zip(
            *(made.snapshot.samples(made.root, ["id", "source"])[name].to_pylist() for name in ("id", "source")),
            strict=True,
        )
    )
    assert {name: len(texts) for name, texts in data.held_out.items()} == dict.fromkeys(NAMES, 5)
    assert Counter(sources[id_] for id_ in data.ids) == {"one": 25, "two": 26}
    assert (data.pool.samples, data.pool.held_out, data.pool.unseen) == (51, 15, "three")
    assert len(data.own.vectors) == len(data.texts) == len(data.own.factor(4, 0.5)) == 51


@pytest.mark.parametrize("name", ["four", ""])
def test_an_unseen_source_that_is_not_there_is_named(made: Made, name: str) -> None:
    with pytest.raises(InputError, match="must be one of several sources; the pool has one, three, two"):
        made.data(STUDY.model_copy(update={"unseen": name}))


# Other vectors.


def test_a_view_has_the_vectors_of_other_texts(made: Made, data: StudyData) -> None:
    view = build_view(data, STUDY.representations[0], made.settings, QUIET)
    prompts = {f"{one['instruction']}\n{one['output']}": one["instruction"] for one in _records(made)}
    expected = [prompts[text] for text in data.texts]
    encoder = load_encoder(made.settings.embedding, "float32", "cpu")
    wanted = np.empty_like(view.vectors)
    for rows, vectors in encoder.batches(expected):
        wanted[rows] = vectors
    np.testing.assert_allclose(view.vectors, wanted, atol=1e-5)
    assert view.kept == 0
    assert not np.allclose(view.vectors, data.own.vectors)
    assert len(view.factor(4, 0.5)) == len(view.vectors)
    assert build_view(data, STUDY.representations[0], made.settings, QUIET) == view


def test_a_view_can_be_whitened_and_reduced(made: Made, data: StudyData) -> None:
    seen = build_view(data, STUDY.representations[1], made.settings, QUIET)
    assert seen.vectors.shape == (51, 6)


def test_samples_without_such_text_keep_theirs(tmp_path: Path) -> None:
    write_jsonl(
        tmp_path / "one.jsonl",
        [{"text": f"Only text, number {number}, {'very ' * number}long."} for number in range(20)],
    )
    settings = Settings(
        device="cpu", pool=Pool(sources=(Source(path="one.jsonl"),)), base=tmp_path,
        embedding=Embedding(model=tiny_model(), dtype="float32"),
        study=Study(held_out=2, representations=(Representation(name="prompt", text="prompt"),)),
    )  # fmt: skip
    root = tmp_path / "curated"
    snapshot = build_snapshot(settings.pool, tmp_path, root, token_counter(settings.embedding))
    samples = snapshot.samples(root, ["id", "text"])
    vectors = embed(
        root, settings.embedding, samples["id"].to_pylist(), samples["text"].to_pylist(), snapshot.key, device="cpu"
    )
    data = StudyData(
        root, snapshot, vectors, build_study_pool(root, snapshot, vectors, settings.novelsum, settings.study)
    )
    view = build_view(data, settings.study.representations[0], settings, QUIET)
    assert view.kept == 20
    np.testing.assert_allclose(view.vectors, data.own.vectors, atol=1e-6)
    (tmp_path / "one.jsonl").write_text('{"text": "Another file."}\n')
    with pytest.raises(InputError, match=r"one\.jsonl has changed since the pool was read; run again: novelsum run"):
        other = Representation(name="response", text="response")
        build_view(data, other, settings, QUIET)


def test_vectors_of_ones_own_have_no_other_representation() -> None:
    with pytest.raises(InputError, match=r"prompt needs a model, but embedding\.vectors supplies vectors"):
        embedding_of(STUDY.representations[0], Embedding(vectors="mine.npy"))


def test_sets_of_a_variant_are_what_select_picks(made: Made, data: StudyData) -> None:
    planned, novelsum = recipes(STUDY), made.settings.novelsum
    column = build_set(data, planned["novelselect-column-8-s8"], novelsum)
    factor = data.own.factor(4, 0.5)
    expected = select("novelselect", data.own.vectors, 8, density_factor=factor, seed=8, density_side="column")
    assert column.rows(made.root).tolist() == np.asarray(expected.indices).tolist()
    seen = build_view(data, STUDY.representations[0], made.settings, QUIET)
    by_prompt = build_set(data, planned["kmeans-by_prompt-8-s8"], novelsum, view=seen)
    expected = select("kmeans", seen.vectors, 8, density_factor=seen.factor(4, 0.5), seed=8, clusters=3)
    assert by_prompt.rows(made.root).tolist() == np.asarray(expected.indices).tolist()


# Plain facts.


def test_the_bigram_model_costs_what_counting_says() -> None:
    rng = np.random.default_rng(0)
    vocabulary, end = 7, 6
    samples = [np.append(rng.integers(0, 6, size), end) for size in (5, 9, 0, 12)]
    texts = [rng.integers(0, 6, size) for size in (4, 0, 8)]
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    before = end
    for sample in samples:
        for token in sample:
            counts[before][int(token)] += 1
            before = int(token)
    bits = 0.0
    for text in texts:
        before = end
        for token in text:
            of = counts[before]
            bits -= math.log2((of[int(token)] + 0.005) / (sum(of.values()) + 0.005 * vocabulary))
            before = int(token)
    found = bigram_bits_per_byte(samples, {"one": (texts, 31)}, end, vocabulary)
    assert found == {"one": pytest.approx(bits / 31)}


@pytest.mark.parametrize("n", [1, 2, 1500])
def test_the_share_of_close_samples_is_that_of_all_pairs(n: int) -> None:
    rng = np.random.default_rng(n)
    rows = rng.normal(size=(n, 3)).astype(np.float32)
    if n == 2:
        rows[1] = 2 * rows[0]
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = units.astype(np.float64) @ units.T
    np.fill_diagonal(cosines, -1)
    expected = np.mean((cosines >= 0.9).any(axis=1)) if n != 2 else 1.0
    assert share_close(rows, 0.9) == pytest.approx(expected, abs=1e-3)


def test_facts_count_tokens_once_for_distinct_samples(made: Made, data: StudyData) -> None:
    tokens = Tokens(data)
    one = build_set(data, recipes(STUDY)["duplicate-8-s8-x3"], made.settings.novelsum)
    found = facts_of_set(tokens, one, STUDY.training.model_copy(update={"tokens": 10**6}))
    rows = one.rows(made.root)
    counts = [len(tokens.of_samples[row]) for row in rows.tolist()]
    assert found.tokens == sum(counts)
    assert found.distinct_tokens == sum(dict(zip(rows.tolist(), counts, strict=True)).values()) < found.tokens
    assert found.close == 1.0
    assert found.characters == pytest.approx(np.mean([len(data.texts[row]) for row in rows]))
    assert found.near_duplicates == np.mean([data.ids[row] in tokens.flagged for row in rows])
    assert list(found.bigram) == list(NAMES)
    few = facts_of_set(tokens, one, STUDY.training.model_copy(update={"tokens": 10}))
    assert few.distinct_tokens == 10


# The whole study.


def test_a_study_keeps_whole_training_seeds(kept: list[Studied]) -> None:
    assert len(kept) == 3  # All sets measured, one seed, two seeds.
    assert {name: set(trained) for name, trained in kept[-1].trainings.items()} == {
        name: {1, 2} for name in recipes(STUDY)
    }


def test_every_training_is_that_of_its_seed(made: Made, data: StudyData, studied: Studied) -> None:
    one = studied.sets["random-8-s8"]
    texts = [data.texts[row] for row in one.rows(made.root)]
    for seed in (1, 2):
        expected = train_and_evaluate(texts, data.held_out, STUDY.training, data.tokenizer, seed, device="cpu")
        assert studied.trainings["random-8-s8"][seed].losses == expected
    performance = studied.performance["random-8-s8"]
    assert performance.losses == {
        name: pytest.approx(np.mean([performance.trials[seed][name] for seed in (1, 2)])) for name in NAMES
    }


def test_all_sets_are_measured_under_every_representation(made: Made, data: StudyData, studied: Studied) -> None:
    assert list(studied.measures) == ["own", "prompt", "whitened"]
    for representation, by_set in studied.measures.items():
        assert list(by_set) == list(recipes(STUDY))
        lexical = {"ttr", "vocd_d"} & set().union(*(one.values for one in by_set.values()))
        assert (lexical != set()) == (representation == "own")
    seen = studied.views["whitened"]
    one = studied.sets["random-8-s8"]
    rows = one.rows(made.root)
    evaluator = study_evaluator(data, made.settings, seen)
    expected = evaluator.measure(
        "a", Samples(seen.vectors[rows]), np.arange(8), factors=seen.factors(rows, (4,), (0.5,)), words=None,
        ttr_tokens=1, reporter=QUIET,
    )  # fmt: skip
    found = studied.measures["whitened"]["random-8-s8"]
    assert {key: one.value for key, one in found.values.items()} == {
        key: one.value for key, one in expected.values.items()
    }


def test_the_tables_have_all_that_was_found(made: Made, studied: Studied, tmp_path: Path) -> None:
    measures = made.settings.measures.model_copy(update={"g_vendi": GVendi(model=str(made.root))})
    tables = tables_of(studied, made.settings.model_copy(update={"measures": measures}), "tiny")
    write_tables(tables, tmp_path)
    found = read_tables([tmp_path])
    sets = len(recipes(STUDY))
    assert len(found["sets"]) == sets
    assert len(found["trials"]) == sets * 2 * 3
    assert {(row["source"], row["kind"]) for row in found["trials"]} == {
        ("one", "seen"), ("two", "seen"), ("three", "unseen"),
    }  # fmt: skip
    one = next(row for row in found["sets"] if row["set"] == "kmeans-by_prompt-8-s8")
    assert (one["variant"], one["chosen_by"], one["density_side"]) == ("by_prompt", "prompt", "")
    column = next(row for row in found["sets"] if row["set"] == "novelselect-column-8-s8")
    assert (column["variant"], column["chosen_by"], column["density_side"]) == ("column", "own", "column")
    facts = {row["fact"]: row["value"] for row in found["studies"]}
    assert facts["unseen"] == "three" and facts["training_seeds"] == "1 2"
    assert facts["measures.g_vendi.model"] == made.root.name
    assert str(made.root) not in json.dumps(found)
    value = studied.measures["prompt"]["random-8-s8"].values["novelsum"].value
    (row,) = (
        row
        for row in found["measures"]
        if (row["set"], row["representation"], row["measure"]) == ("random-8-s8", "prompt", "novelsum")
    )
    assert float(row["value"]) == pytest.approx(value, rel=1e-5)


@pytest.mark.slow
def test_workers_find_what_one_process_finds(made: Made, studied: Studied) -> None:
    """Each has one thread, as this process."""
    fresh = STUDY.model_copy(update={"training_seeds": (1, 3), "training_workers": 2})
    side_by_side = made.correlate(fresh)[-1]
    for path in (made.root / "study").glob("performance=*.json"):
        path.unlink()
    alone = made.correlate(fresh.model_copy(update={"training_workers": 1}))[-1]
    assert side_by_side.trainings == alone.trainings


def _records(made: Made) -> list[dict[str, Any]]:
    return [
        json.loads(line) for name in NAMES for line in (made.settings.base / f"{name}.jsonl").read_text().splitlines()
    ]
