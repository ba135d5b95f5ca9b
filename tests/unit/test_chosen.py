"""A selection as the settings describe it: fields, ids, quotas and budgets of a real snapshot."""

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from pydantic import ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.pool.fields import field_values, positive_numbers
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.selection import STRATEGIES, novelselect
from novelsum_dagster.selection.chosen import PoolSelection, require_possible
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.picks import Picks
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.selection.subset import describe, remaining_table
from novelsum_dagster.settings import Embedding, NovelSum, Pool, Selection, Source
from tests.pools import alpaca, write_jsonl


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chosen")


@pytest.fixture(scope="module")
def snapshot(root: Path) -> PoolSnapshot:
    """60 samples of two sources: 40 with a quality and a topic, 20 with a topic."""
    graded = [
        {**row, "meta": {"score": 1 + number % 7, "topic": "abc"[number % 3]}} for number, row in enumerate(alpaca(40))
    ]
    write_jsonl(root / "graded.jsonl", graded)
    write_jsonl(root / "plain.jsonl", [{**row, "meta": {"topic": "d"}} for row in alpaca(20, start=40)])
    sources = (Source(path="graded.jsonl", name="graded"), Source(path="plain.jsonl", name="plain"))
    return build_snapshot(Pool(sources=sources), root, root / "storage", token_counter(Embedding()))


VECTORS = np.random.default_rng(0).normal(size=(60, 16)).astype(np.float32)
FACTOR = np.random.default_rng(1).uniform(0.5, 3, 60)


def _choose(snapshot: PoolSnapshot, root: Path, **settings: Any) -> Picks:
    selection = Selection.model_validate(settings)
    options = NovelSelectOptions(Scoring.of(selection, NovelSum()))
    return PoolSelection(root / "storage", snapshot, VECTORS, selection, options).picks(FACTOR)


def test_every_strategy_has_its_name_in_the_settings() -> None:
    assert set(get_args(Selection.model_fields["strategy"].annotation)) == set(STRATEGIES)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_runs_by_its_settings(snapshot: PoolSnapshot, root: Path, strategy: str) -> None:
    picks = _choose(snapshot, root, strategy=strategy, k=12, duplicate={"copies": 3}, kmeans={"clusters": 4})
    assert len(picks.indices) == 12
    assert len(set(picks.indices.tolist())) == (4 if strategy == "duplicate" else 12)


def test_without_limits_it_is_novelselect(snapshot: PoolSnapshot, root: Path) -> None:
    expected = novelselect(VECTORS, 20, density_factor=FACTOR, seed=7)
    assert _choose(snapshot, root, k=20, seed=7).indices.tolist() == expected.indices.tolist()


def test_ids_quotas_and_columns(snapshot: PoolSnapshot, root: Path) -> None:
    ids = snapshot.samples(root / "storage", ["id"])["id"].to_pylist()
    topics = field_values(snapshot, root / "storage", "meta.topic")
    picks = _choose(
        snapshot, root, k=20, must_include=[ids[11], ids[3]], must_exclude=[ids[5]],
        quotas=[{"column": "source", "floors": {"plain": 9}}, {"column": "meta.topic", "caps": {"a": 2}}],
    )  # fmt: skip
    assert picks.indices[:2].tolist() == [11, 3]
    assert 5 not in picks.indices
    assert sum(index >= 40 for index in picks.indices) >= 9
    assert sum(topics[index] == "a" for index in picks.indices) == 2


def test_labels_may_be_numbers(snapshot: PoolSnapshot, root: Path) -> None:
    turns = field_values(snapshot, root / "storage", "turns")
    assert set(turns) == {2}
    picks = _choose(snapshot, root, k=20, quotas=[{"column": "turns", "caps": {2: 20}}])
    assert len(picks.indices) == 20


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"k": 61}, "k must be from 1 to 60"),
        ({"k": 5, "quality": "meta.scroe"}, "'meta.scroe' is neither a column"),
        ({"k": 5, "must_exclude": ["abc"]}, "no sample of the pool has the id 'abc'"),
        ({"k": 5, "quotas": [{"column": "sorce", "caps": {"a": 1}}]}, "'sorce' is neither a column"),
        ({"k": 5, "quotas": [{"column": "source", "floors": {"plain": 6}}]}, "need 6, but k is 5"),
        ({"token_budget": 1}, "eligible sample"),
    ],
)
def test_what_cannot_be_is_refused_without_vectors(
    snapshot: PoolSnapshot, root: Path, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        require_possible(snapshot, root / "storage", Selection.model_validate(settings))


def test_a_token_budget_takes_the_place_of_k(snapshot: PoolSnapshot, root: Path) -> None:
    tokens = np.array(field_values(snapshot, root / "storage", "tokens"))
    budget = int(tokens.sum()) // 3
    picks = _choose(snapshot, root, token_budget=budget)
    spent = tokens[picks.indices].sum()
    left = np.setdiff1d(np.arange(60), picks.indices)
    assert spent <= budget < spent + tokens[left].min()


def test_quality_is_a_field_of_the_records(snapshot: PoolSnapshot, root: Path) -> None:
    with pytest.raises(InputError, match=r"plain.jsonl, record 1: meta.score is None; a number above 0 is needed"):
        _choose(snapshot, root, k=5, quality="meta.score")
    tokens = np.array(positive_numbers(snapshot, root / "storage", "tokens"))
    picks = _choose(snapshot, root, k=5, quality="tokens")
    assert picks.quality.tolist() == tokens[picks.indices].tolist()
    assert picks.indices.tolist() == novelselect(VECTORS, 5, density_factor=FACTOR, quality=tokens).indices.tolist()


def test_what_the_settings_name_must_be_there(snapshot: PoolSnapshot, root: Path) -> None:
    with pytest.raises(InputError, match=r"'meta.scroe' is neither a column"):
        _choose(snapshot, root, k=5, quality="meta.scroe")
    with pytest.raises(InputError, match=r"selection.must_include: no sample of the pool has the id 'abc'"):
        _choose(snapshot, root, k=5, must_include=["abc"])
    with pytest.raises(ValueError, match="source 'plane' has a cap but no sample; the labels are 'graded', 'plain'"):
        _choose(snapshot, root, k=5, quotas=[{"column": "source", "caps": {"plane": 2}}])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"k": 5, "token_budget": 100}, "either k or token_budget"),
        ({"k": None}, "give k or token_budget"),
        ({"strategy": "random", "must_exclude": ["a"]}, "must_exclude works with strategy novelselect only"),
        ({"strategy": "kmeans", "token_budget": 5}, "token_budget works with strategy novelselect only"),
        ({"quotas": [{"column": "source", "caps": {"a": -1}}]}, "greater than or equal to 0"),
        ({"repr_filter": {"threshold": 2}}, "less than or equal to 1"),
        ({"quotas": [{"column": "source"}]}, "give caps, floors or both"),
        ({"strategy": "kmeans", "quality": "score"}, "quality has no effect in strategy kmeans"),
        ({"strategy": "qdit", "quality": "score"}, "qdit.quality_weight over 0, or neither"),
        ({"strategy": "qdit", "qdit": {"quality_weight": 0.5}}, "qdit.quality_weight over 0, or neither"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(values: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Selection.model_validate(values)


def test_the_record_names_what_differs_from_the_defaults() -> None:
    plain = describe(Selection(k=7))
    assert plain == {"strategy": "novelselect", "k": 7, "seed": 42, "options": {}}
    full = describe(Selection(strategy="repr_filter", quality="meta.score", repr_filter={"threshold": 0.5}))
    assert full["options"] == {"quality": "meta.score", "threshold": 0.5}
    assert describe(Selection(k=7, verify=3)) == plain


def test_every_sample_has_its_last_score_or_bound(snapshot: PoolSnapshot, root: Path) -> None:
    picks = _choose(snapshot, root, k=20)
    assert picks.remaining is not None
    table = remaining_table(snapshot.samples(root / "storage", ["id"])["id"], picks.remaining, picks.eligibility)
    assert table.column_names == ["id", "score", "after_picks", "is_exact", "eligible_picks", "barred_by"]
    assert table["eligible_picks"].to_pylist()[picks.indices[7]] == 7
    assert set(table["barred_by"].to_pylist()) == {None}
    assert len(table) == 60
    at_first = table["score"].to_pylist()[picks.indices[0]]
    assert at_first is None
    assert table["score"].to_pylist()[picks.indices[7]] == picks.score[7]
    assert table["after_picks"].to_pylist()[picks.indices[7]] == 7
