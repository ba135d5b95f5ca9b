"""The causes that `diff` names, against plain selections with one and two changes at a time.

A world is a pool and the settings of a selection as plain values. Two worlds become two recorded runs, whose difference
is compared with selections that share no code with the package (`tests.plain`).
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from novelsum_dagster.artifacts.provenance import Provenance
from novelsum_dagster.audit.attribution import PAIRS
from novelsum_dagster.audit.difference import Change, Difference, difference
from novelsum_dagster.audit.record import _OF_FILE, _OF_POOL
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_json, write_table
from novelsum_dagster.diversity.tables import build_density
from novelsum_dagster.embedding.store import load_vectors, vectors_key
from novelsum_dagster.lineage.runs import find_run
from novelsum_dagster.lineage.store import LineageStore, insert
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.selection.chosen import PoolSelection
from novelsum_dagster.selection.novelselect import NovelSelectOptions
from novelsum_dagster.selection.scoring import Scoring
from novelsum_dagster.settings import Settings
from tests.plain import PlainLimits, PlainQuota, plain_novelselect
from tests.pools import write_jsonl

N, K, DIMENSION = 56, 9, 5
Codes = frozenset[str]


@dataclass(frozen=True)
class World:
    """Records by number, in files, and the settings of a selection.

    `near` are near-duplicates: each of another record, which stands before it.
    """

    files: dict[str, list[int]]
    quality: dict[int, int]
    sources: dict[str, str] = field(default_factory=dict)
    near: dict[int, int] = field(default_factory=dict)
    drops: bool = False
    model: str = "m"
    selection: dict[str, Any] = field(default_factory=lambda: {"k": K, "seed": 1})
    novelsum: dict[str, Any] = field(default_factory=lambda: {"neighbors": 3})

    @property
    def read(self) -> list[int]:
        """Records in order."""
        return [number for numbers in self.files.values() for number in numbers]

    @property
    def dropped(self) -> set[int]:
        return {one for one in self.near if self.drops and one in self.read}

    @property
    def pool(self) -> list[int]:
        return [number for number in self.read if number not in self.dropped]

    def source(self, number: int) -> str:
        name = next(name for name, numbers in self.files.items() if number in numbers)
        return self.sources.get(name, name)

    def label(self, column: str, number: int) -> str:
        return self.source(number) if column == "source" else "abc"[number % 3]


def world(seed: int) -> World:
    """Return a world of two files."""
    random = np.random.default_rng(seed)
    return World(
        {"one": list(range(30)), "two": list(range(30, N))},
        {number: int(random.integers(1, 5)) for number in range(200)},
    )


def vector_of(number: int, model: str = "m") -> NDArray[np.float32]:
    """Return a record's vector, always the same."""
    return np.random.default_rng([number, ord(model)]).normal(size=DIMENSION).astype(np.float32)


def text_of(world: World, number: int) -> str:
    """Return a record's text: that of a near-duplicate differs in one word of many."""
    origin = world.near.get(number, number)
    letters = np.random.default_rng(origin).choice(list("abcdefghijklmnopqrstuvwxyz"), (60, 6))
    text = " ".join("".join(word) for word in letters)
    return f"{text} {number}"


# Selections done plainly.


def plain_squared(vectors: NDArray[np.float32], neighbors: int) -> NDArray[np.float64]:
    """Return the mean squared distance of each to its nearest others."""
    wide = vectors.astype(np.float64)
    squared = np.square(wide[:, None] - wide[None]).sum(2)
    mean: NDArray[np.float64] = np.sort(squared, axis=1)[:, 1 : neighbors + 1].mean(1)
    return mean


def plain_picks(
    pool: list[int],
    world: World,
    value: Callable[[int], int],
    label: Callable[[str, int], str],
    tokens: Mapping[int, int],
) -> list[int]:
    """Return the records that a world's settings pick from a pool, given each record's quality, labels and tokens."""
    chosen, measure = world.selection, world.novelsum
    vectors = np.array([vector_of(number, world.model) for number in pool])
    factor = (plain_squared(vectors, measure["neighbors"]) + 1e-9) ** -measure.get("density_power", 0.5)
    quality = np.array([value(number) for number in pool], np.float64) if chosen.get("quality") else None
    budget = chosen.get("token_budget")
    columns = dict.fromkeys([*chosen.get("caps", {}), *chosen.get("floors", {})])
    limits = PlainLimits(
        np.array([tokens[number] for number in pool], np.float64) if budget else np.ones(len(pool)),
        budget or chosen["k"],
        [
            PlainQuota(
                [label(column, number) for number in pool],
                chosen.get("caps", {}).get(column, {}),
                chosen.get("floors", {}).get(column, {}),
            )
            for column in columns
        ],
        [pool.index(number) for number in chosen.get("exclude", ()) if number in pool],
    )
    found = plain_novelselect(
        vectors, len(pool) if budget else chosen["k"], factor, measure.get("proximity_power", 1.0), chosen["seed"],
        quality, allowed=limits.eligible if columns or budget or limits.excluded else None,
    )  # fmt: skip
    return [pool[row] for row in found.indices]


def mixed(a: World, b: World, codes: Codes, tokens: Mapping[int, int]) -> set[int]:
    """Return what run a picks with some inputs as in run b."""
    first, second = (b, a) if "order" in codes else (a, b)
    order = list(first.pool)
    for place, number in enumerate(second.pool):
        if number not in first.pool:
            before = second.pool[place - 1] if place else None
            order.insert(0 if before is None else order.index(before) + 1, number)

    def is_in(number: int) -> bool:
        if number in a.pool and number in b.pool:
            return True
        if number in a.pool:
            return ("near_duplicates" if number in b.dropped else "data_removed") not in codes
        return ("near_duplicates" if number in a.dropped else "data_added") in codes

    selection = {**a.selection, **{name: b.selection.get(name) for name in _settings(codes, "selection")}}
    selection = {name: value for name, value in selection.items() if value is not None}
    novelsum = {**a.novelsum, **{name: b.novelsum[name] for name in _settings(codes, "novelsum")}}
    merged = replace(a, selection=selection, novelsum=novelsum, model=b.model if "vectors" in codes else a.model)
    of_quality, of_label = (b if code in codes else a for code in ("quality_values", "labels"))

    def world_of(number: int, chosen: World) -> World:
        return chosen if number in chosen.read else b if chosen is a else a

    return set(
        plain_picks(
            [number for number in order if is_in(number)],
            merged,
            lambda number: world_of(number, of_quality).quality[number],
            lambda column, number: world_of(number, of_label).label(column, number),
            tokens,
        )
    )


_TOGETHER = {"quotas": ("caps", "floors"), "must_exclude": ("exclude",), "k": ("k", "token_budget")}
"""What a setting is called in a world."""


def _settings(codes: Codes, section: str) -> list[str]:
    names = [code.partition(".")[2] for code in codes if code.startswith(f"{section}.")]
    return [one for name in names for one in _TOGETHER.get(name, (name,))]


# Worlds as recorded runs.


class Runs:
    """A storage with runs made from worlds, without Dagster."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.root = folder, folder / "storage"
        self.store = LineageStore(self.root)
        self.made = 0
        self.ids: dict[str, str] = {}
        self.number_of: dict[str, int] = {}
        self.tokens: dict[int, int] = {}

    def run(self, world: World) -> str:
        """Return the run of a world, selected and recorded once."""
        if repr(world) not in self.ids:
            self.ids[repr(world)] = self._made(world)
        return self.ids[repr(world)]

    def _made(self, world: World) -> str:
        self.made += 1
        run_id, base = f"{self.made:08d}-run", self.folder / f"w{self.made}"
        for name, numbers in world.files.items():
            rows = [
                {
                    "instruction": text_of(world, number), "input": "", "output": "yes",
                    "meta": {"score": world.quality[number], "topic": "abc"[number % 3]},
                }
                for number in numbers
            ]  # fmt: skip
            write_jsonl(base / f"{name}.jsonl", rows)
        settings = Settings.model_validate({"base": base, **self.sections(world)})
        pool = build_snapshot(settings.pool, base, self.root, lambda texts: [len(text.split()) for text in texts])
        texts = pool.samples(self.root, ["id", "text", "tokens"]).to_pylist()
        numbers = [int(row["text"].split("\n")[0].split()[-1]) for row in texts]
        ids = [row["id"] for row in texts]
        self.number_of |= dict(zip(ids, numbers, strict=True))
        self.tokens |= dict(zip(numbers, (row["tokens"] for row in texts), strict=True))
        assert numbers == world.pool
        folder = self._vectors(world, ids, numbers)
        vectors = load_vectors(self.root / folder, ids)
        key = vectors_key(ids, vectors)
        density = build_density(self.root, ids, vectors, key, settings=settings.novelsum)
        chosen, measure = settings.selection, settings.novelsum
        options = NovelSelectOptions(Scoring.of(chosen, measure), density_power=measure.density_power)
        subset = PoolSelection(self.root, pool, vectors, chosen, options).subset(key, density)
        recorded = subset.settings.model_dump(exclude={"key", "options"})
        rows_by_table: dict[str, list[dict[str, Any]]] = {
            "runs": [
                {
                    "run_id": run_id, "started_at": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=self.made),
                    "package_version": "0", "git_revision": run_id, "python": "", "platform": "",
                    "settings": settings.model_dump_json(),
                }
            ],
            "snapshots": [
                {
                    "snapshot": pool.key,
                    **{name: getattr(pool, name) for name in _OF_POOL},
                }
            ],
            "source_files": [
                {"snapshot": pool.key, **one.model_dump(include=_OF_FILE)} for one in pool.files
            ],
            "embeddings": [
                {
                    "vectors": key, "snapshot": pool.key, "folder": folder, "model": world.model, "revision": "r",
                    "max_tokens": 9, "dtype": "float32", "dimension": DIMENSION, "samples": len(ids),
                }
            ],
            "densities": [{"density": density.key, **density.model_dump(exclude={"key"})}],
            "selections": [
                {"selection": subset.key, "folder": subset.folder, **recorded,
                 "options": json.dumps(subset.settings.options)}
            ],
            "run_outputs": [
                {
                    "run_id": run_id, "snapshot": pool.key, "vectors": key, "density": density.key, "novelty": "n",
                    "selection": subset.key, "report": "t",
                }
            ],
        }  # fmt: skip
        with self.store.writing() as connection:
            for table, rows in rows_by_table.items():
                insert(connection, table, rows)
        return run_id

    def sections(self, world: World) -> dict[str, Any]:
        """Return the settings of a world."""
        given = dict(world.selection)
        caps, floors, exclude = given.pop("caps", {}), given.pop("floors", {}), given.pop("exclude", [])
        ids = {number: id_ for id_, number in self.number_of.items()}
        return {
            "pool": {
                "sources": [{"path": f"{name}.jsonl", "name": world.sources.get(name, name)} for name in world.files],
                "near_duplicates": {"by": "minhash" if world.near else "off", "drop": world.drops},
            },
            "novelsum": world.novelsum,
            "selection": {
                **given,
                "quotas": [
                    {"column": column, "caps": caps.get(column, {}), "floors": floors.get(column, {})}
                    for column in dict.fromkeys([*caps, *floors])
                ],
                "must_exclude": [ids[number] for number in exclude],
            },
        }

    def _vectors(self, world: World, ids: list[str], numbers: list[int]) -> str:
        folder = f"vectors/{world.model}"
        path = self.root / folder
        known = {id_ for file in path.glob("*.parquet") for id_ in pq.read_table(file)["id"].to_pylist()}
        new = [(id_, number) for id_, number in zip(ids, numbers, strict=True) if id_ not in known]
        if new:
            rows = np.array([vector_of(number, world.model) for _, number in new])
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), DIMENSION)
            write_table(pa.table({"id": [id_ for id_, _ in new], "vector": vectors}), path / f"{self.made}.parquet")
            write_json({"name": world.model, "revision": "r", "pooling": f"pooling {world.model}"}, path / "model.json")
        return folder

    def difference(self, a: str, b: str, pairs: int = PAIRS) -> Difference:
        with self.store.reading() as connection:
            return difference(connection, self.root, find_run(connection, a), find_run(connection, b), pairs)

    def compared(self, a: World, b: World, pairs: int = PAIRS) -> Difference:
        return self.difference(self.run(a), self.run(b), pairs)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("attribution"))


# Changes to a world.

CHANGES: dict[str, tuple[str, Callable[[World], World]]] = {
    "order": ("order", lambda w: replace(w, files=dict(reversed(w.files.items())))),
    "added": ("data_added", lambda w: replace(w, files={**w.files, "new": list(range(100, 118))})),
    "removed": ("data_removed", lambda w: replace(w, files={**w.files, "one": w.files["one"][:20]})),
    "seed": ("selection.seed", lambda w: replace(w, selection={**w.selection, "seed": 5})),
    "more": ("selection.k", lambda w: replace(w, selection={**w.selection, "k": K + 6})),
    "fewer": ("selection.k", lambda w: replace(w, selection={**w.selection, "k": K - 4})),
    "quality": (
        "quality_values",
        lambda w: replace(w, quality={n: v if n % 4 else v * 9 for n, v in w.quality.items()}),
    ),
    "caps": (
        "selection.quotas",
        lambda w: replace(w, selection={**w.selection, "caps": {"meta.topic": {"a": 1, "b": 2}}}),
    ),
    "exclude": (
        "selection.must_exclude",
        lambda w: replace(w, selection={**w.selection, "exclude": list(range(0, N, 3))}),
    ),
    "alpha": ("novelsum.proximity_power", lambda w: replace(w, novelsum={**w.novelsum, "proximity_power": 0.2})),
    "beta": ("novelsum.density_power", lambda w: replace(w, novelsum={**w.novelsum, "density_power": 0.0})),
    "neighbors": ("novelsum.neighbors", lambda w: replace(w, novelsum={**w.novelsum, "neighbors": 1})),
    "model": ("vectors", lambda w: replace(w, model="n")),
    "floors": (
        "selection.quotas",
        lambda w: replace(w, selection={**w.selection, "floors": {"source": {"two": 7}, "meta.topic": {"c": 6}}}),
    ),
    "budget": ("selection.k", lambda w: replace(w, selection={**w.selection, "k": None, "token_budget": 700})),
    "renamed": ("labels", lambda w: replace(w, sources={"one": "two", "two": "one"})),
    "near": ("near_duplicates", lambda w: replace(w, drops=True)),
}
"""By name: the code of the input, and the change."""


def start(seed: int, names: Sequence[str]) -> World:
    """Return a world in which the changes are possible."""
    found = world(seed)
    if "quality" in names:
        found = replace(found, selection={**found.selection, "quality": "meta.score"})
    if "renamed" in names:
        found = replace(found, selection={**found.selection, "caps": {"source": {"one": 2}}})
    if "beta" in names or "alpha" in names:
        found = replace(found, novelsum={"density_power": 0.5, "proximity_power": 1.0, **found.novelsum})
    if "near" in names:
        near = {150 + number: number for number in range(12)}
        found = replace(found, files={**found.files, "near": list(near)}, near=near)
    return found


def require_true(runs: Runs, a: World, b: World, found: Difference, codes: Sequence[str]) -> None:
    """Compare every cause with plain selections."""
    assert {one.code for one in found.inputs} == set(codes)
    assert found.not_replayed is None
    possible = [frozenset(chosen) for size in (0, 1, 2) for chosen in combinations(sorted(codes), size)]
    truth = {chosen: mixed(a, b, chosen, runs.tokens) for chosen in [*possible, frozenset(codes)]}
    mine, theirs = truth[frozenset()], truth[frozenset(codes)]
    for changes, numbers, is_in in ((found.entered, theirs - mine, True), (found.left, mine - theirs, False)):
        assert {runs.number_of[one.id] for one in changes} == numbers
        for change in changes:
            number = runs.number_of[change.id]
            does = {chosen for chosen, picks in truth.items() if (number in picks) == is_in}
            alone = {code for code in codes if frozenset([code]) in does}
            if not is_in and number not in b.pool:
                gone = "near_duplicates" if number in b.dropped else "data_removed"
                assert (change.kind, change.causes) == ("attributed", (gone,)) and gone in alone
            elif change.kind == "attributed":
                assert set(change.causes) == alone != set()
            else:
                assert change.kind == "together" and not alone
                if len(change.causes) == 2:
                    assert frozenset(change.causes) in does
                else:
                    assert not any(len(chosen) == 2 for chosen in does)
                    assert set(change.causes) <= set(codes)


@pytest.mark.parametrize("name", CHANGES)
def test_one_change(runs: Runs, name: str) -> None:
    a = start(3, [name])
    code, change = CHANGES[name]
    b = change(a)
    found = runs.compared(a, b)
    require_true(runs, a, b, found, [code])
    assert found.replayed == 0 and (found.entered or found.left)
    assert all(one.causes == (code,) for one in [*found.entered, *found.left])


PAIRS_OF_CHANGES = [
    ("more", "added"), ("order", "seed"), ("order", "added"), ("added", "removed"), ("removed", "seed"),
    ("caps", "exclude"), ("quality", "added"), ("quality", "order"), ("alpha", "beta"), ("neighbors", "more"),
    ("neighbors", "removed"), ("model", "seed"), ("near", "added"), ("fewer", "removed"), ("floors", "more"),
    ("budget", "added"), ("renamed", "seed"), ("near", "beta", "added", "more"),
]  # fmt: skip
MORE_OF_THEM = [
    ("fewer", "added"), ("added", "seed"), ("caps", "added"), ("quality", "removed"), ("neighbors", "added"),
    ("model", "more"), ("near", "seed"), ("near", "more"), ("beta", "removed"), ("exclude", "seed"), ("more", "caps"),
    ("quality", "seed"), ("model", "exclude"), ("floors", "added"), ("budget", "seed"), ("renamed", "added"),
    ("near", "floors"), ("more", "added", "removed"), ("seed", "order", "caps"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "seed"),
    [
        *((names, 3) for names in PAIRS_OF_CHANGES),
        *(pytest.param(names, 3, marks=pytest.mark.slow) for names in MORE_OF_THEM),
        *(
            pytest.param(names, seed, marks=pytest.mark.slow)
            for names in [*PAIRS_OF_CHANGES, *MORE_OF_THEM]
            for seed in (4, 5)
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else str(value),
)
def test_several_changes(runs: Runs, names: tuple[str, ...], seed: int) -> None:
    a = b = start(seed, names)
    for name in names:
        b = CHANGES[name][1](b)
    found = runs.compared(a, b)
    require_true(runs, a, b, found, [CHANGES[name][0] for name in names])


# The cases that earlier releases got wrong, and what cannot be decided.


def causes(changes: Sequence[Change]) -> set[tuple[str, ...]]:
    return {(one.kind, *one.causes) for one in changes}


def test_sources_in_another_order_added_nothing(runs: Runs) -> None:
    found = runs.compared(world(3), CHANGES["order"][1](world(3)))
    assert found.entered and causes([*found.entered, *found.left]) == {("attributed", "order")}
    assert found.settings == {"pool.sources": (["one.jsonl", "two.jsonl"], ["two.jsonl", "one.jsonl"])}
    assert all("order" in one.cause and "added" not in one.cause for one in found.entered)


def test_an_edited_quality_is_named_with_its_number_of_samples(runs: Runs) -> None:
    a = start(3, ["quality"])
    found = runs.compared(a, CHANGES["quality"][1](a))
    edited = sum(number % 4 == 0 for number in a.pool)
    assert dict(found.inputs[0].facts) == {"field": "meta.score", "samples": edited}
    assert {one.cause for one in found.entered} == {f"quality values changed: {edited} samples"}
    assert found.settings == {}


def test_a_larger_k_is_not_blamed_for_a_sample_that_left(runs: Runs) -> None:
    """Also where nothing can be replayed."""
    a = world(3)
    b = CHANGES["more"][1](CHANGES["added"][1](a))
    for pairs in (PAIRS, 0):
        found = runs.compared(a, b, pairs)
        assert found.left and causes(found.left) == {("attributed", "data_added")}
    assert {one.kind for one in found.entered} == {"possible"} and found.replayed == 0
    assert found.not_replayed is not None and "pairs" in found.not_replayed
    new = [one for one in found.entered if runs.number_of[one.id] >= 100]
    assert new and all(one.cause.startswith("new data: not in the pool before; perhaps together") for one in new)
    assert all("possibly" in one.cause for one in found.entered if one not in new)


def test_a_renamed_source_changes_no_pick_unless_a_quota_counts_it(runs: Runs) -> None:
    a = world(3)
    found = runs.compared(a, replace(a, sources={"one": "first"}))
    assert (found.inputs, found.entered, found.left) == ((), (), ())
    assert found.data == {"sources_renamed": [{"from": "one", "to": "first"}], "files_moved": []}
    a = start(3, ["renamed"])
    found = runs.compared(a, CHANGES["renamed"][1](a))
    assert [dict(one.facts) for one in found.inputs] == [{"columns": {"source": N}}]
    assert all("source" in one.cause for one in found.entered)


def test_a_moved_file_is_named_and_is_no_other_data(runs: Runs) -> None:
    a = world(3)
    files = {"elsewhere" if name == "one" else name: numbers for name, numbers in a.files.items()}
    found = runs.compared(a, replace(a, files=files, sources={"elsewhere": "one"}))
    assert (found.inputs, found.entered, found.left) == ((), (), ())
    assert found.data == {"sources_renamed": [], "files_moved": [{"from": "one.jsonl", "to": "elsewhere.jsonl"}]}


def test_settings_are_shown_by_the_keys_that_differ(runs: Runs) -> None:
    a = replace(world(3), selection={"k": K, "seed": 1, "caps": {"meta.topic": {"a": 4, "b": 5}}})
    b = replace(a, selection={**a.selection, "caps": {"meta.topic": {"a": 6, "b": 5}, "source": {"one": 5}}})
    assert runs.compared(a, b).settings == {
        "selection.quotas": (["meta.topic"], ["meta.topic", "source"]),
        "selection.quotas.meta.topic.caps.a": (4, 6),
        "selection.quotas.source.caps.one": (None, 5),
    }


def test_every_part_of_a_models_key_counts(runs: Runs) -> None:
    found = runs.compared(world(3), CHANGES["model"][1](world(3)))
    assert dict(found.inputs[0].facts) == {
        "keys": {"embedding.model": ["m", "n"], "embedding.pooling": ["pooling m", "pooling n"]}
    }
    assert not found.same_model and found.same_code
    assert "changed model (m to n) with changed settings (embedding.pooling)" in found.entered[0].cause


def test_vectors_of_another_model_that_a_state_lacks_leave_causes_open(runs: Runs) -> None:
    a = world(3)
    b = CHANGES["removed"][1](CHANGES["model"][1](a))
    b = replace(b, model="p")
    found = runs.compared(a, b)
    assert {one.code for one in found.inputs} == {"vectors", "data_removed"}
    assert found.not_replayed is not None and "no stored values" in found.not_replayed
    gone = [one for one in found.left if runs.number_of[one.id] not in b.pool]
    assert causes(gone) <= {("attributed", "data_removed")}
    others = causes([*found.entered, *(one for one in found.left if one not in gone)])
    # With the removal alone, the vectors of all samples are known.
    assert others <= {("attributed", "data_removed"), ("possible", "data_removed", "vectors")}


def copy_of(runs: Runs, folder: Path) -> Runs:
    """Return the runs in another folder, where files may be changed."""
    made = Runs(Path(shutil.copytree(runs.folder, folder / "copy")))
    made.number_of, made.tokens, made.made, made.ids = runs.number_of, runs.tokens, runs.made, dict(runs.ids)
    with made.store.writing():
        pass
    return made


def test_vectors_that_are_gone_leave_causes_open(runs: Runs, tmp_path: Path) -> None:
    a = world(3)
    b = CHANGES["exclude"][1](CHANGES["seed"][1](a))
    pair = runs.run(a), runs.run(b)
    copy = copy_of(runs, tmp_path)
    shutil.rmtree(copy.root / "vectors" / "m")
    found = copy.difference(*pair)
    assert {one.kind for one in found.entered} == {"possible"} and found.not_replayed
    assert {one.causes for one in found.entered} == {("selection.seed", "selection.must_exclude")}


def test_picks_that_are_not_reproduced_leave_causes_open(runs: Runs, tmp_path: Path) -> None:
    a = world(3)
    b = CHANGES["exclude"][1](CHANGES["seed"][1](a))
    pair = runs.run(a), runs.run(b)
    copy = copy_of(runs, tmp_path)
    for path in copy.root.glob("density/*/density.parquet"):
        table = pq.read_table(path, partitioning=None)
        values = table["mean_squared_distance"].to_numpy()[::-1]
        write_table(table.set_column(1, "mean_squared_distance", pa.array(values)), path)
    found = copy.difference(*pair)
    assert {one.kind for one in found.entered} == {"possible"}
    assert found.not_replayed is not None and "does not give the picks" in found.not_replayed


def test_code_is_a_cause_only_if_a_step_has_another_version(runs: Runs, tmp_path: Path) -> None:
    """The runs have other git revisions in any case."""
    a = world(3)
    b = CHANGES["seed"][1](a)
    pair = runs.run(a), runs.run(b)
    copy = copy_of(runs, tmp_path)
    for version, codes in (("4", ["selection.seed"]), ("5", ["selection.seed", "code"])):
        with copy.store.writing() as connection:
            connection.execute("DELETE FROM provenance")
            for run_id, made_by in zip(pair, ("4", version), strict=True):
                record = Provenance(
                    asset="selected_subset", output="x", run_id=run_id, made_at=datetime.now(UTC),
                    code_version=made_by, inputs={}, settings={}, config={}, seed=1, files={}, versions={},
                    git_revision=run_id, git_is_clean=True, machine={},
                )  # fmt: skip
                row = {"run_id": run_id, "asset": record.asset, "output": "x", "bytes": 0}
                insert(connection, "provenance", [{**row, "record": record.model_dump_json()}])
        found = copy.difference(*pair)
        assert [one.code for one in found.inputs] == codes and found.same_code == (len(codes) == 1)
        # Both runs are reproduced by the code of today, so it is no cause.
        assert causes(found.entered) == {("attributed", "selection.seed")}
    assert causes(copy.difference(*pair, pairs=0).entered) == {("possible", "selection.seed", "code")}


def test_vectors_fitted_on_each_pool_are_no_input_of_their_own(runs: Runs, tmp_path: Path) -> None:
    a = world(3)
    b = CHANGES["added"][1](a)
    c = CHANGES["seed"][1](b)
    pairs = [runs.run(one) for one in (a, b, c)]
    copy = copy_of(runs, tmp_path)
    for name, like in (("f", pairs[:1]), ("g", pairs[1:])):
        shutil.copytree(copy.root / "vectors" / "m", copy.root / "vectors" / name)
        write_json(
            {"name": "m", "revision": "r", "whiten": True, "fitted_on": name}, copy.root / f"vectors/{name}/model.json"
        )
        with copy.store.writing() as connection:
            for run_id in like:
                connection.execute(
                    "UPDATE embeddings SET folder = ?"
                    " WHERE vectors = (SELECT vectors FROM run_outputs WHERE run_id = ?)",
                    [f"vectors/{name}", run_id],
                )
    found = copy.difference(pairs[0], pairs[1])
    assert [one.code for one in found.inputs] == ["data_added"]
    assert causes(found.left) == {("attributed", "data_added")}
    found = copy.difference(pairs[0], pairs[2])
    assert [one.code for one in found.inputs] == ["data_added", "selection.seed"] and found.not_replayed is None
    require_true(runs, a, c, found, ["data_added", "selection.seed"])


def test_two_equal_runs_have_no_inputs(runs: Runs) -> None:
    found = runs.compared(world(3), world(3))
    assert (found.inputs, found.entered, found.left, found.replayed) == ((), (), (), 0)
    assert found.settings == {} and found.same_code and found.same_model


def test_settings_of_another_version_are_one_input(runs: Runs, tmp_path: Path) -> None:
    a = world(3)
    b = CHANGES["seed"][1](a)
    c = CHANGES["added"][1](b)
    ids = [runs.run(one) for one in (a, b, c)]
    copy = copy_of(runs, tmp_path)
    with copy.store.writing() as connection:
        connection.execute(
            'UPDATE runs SET settings = json_merge_patch(settings, \'{"selection": {"former": 1}}\') WHERE run_id = ?',
            [ids[0]],
        )
    found = copy.difference(ids[0], ids[1])
    assert [one.code for one in found.inputs] == ["settings"]
    assert all("selection.seed" in one.cause for one in found.entered)
    found = copy.difference(ids[0], ids[2])
    assert {one.code for one in found.inputs} == {"data_added", "settings"}
    assert found.not_replayed is not None and "another version" in found.not_replayed
    stayed = [one for one in found.left if runs.number_of[one.id] in c.pool]
    assert causes(stayed) == {("possible", "data_added", "settings")}


def test_a_pool_whose_file_is_gone_is_named(runs: Runs, tmp_path: Path) -> None:
    pair = runs.run(world(3)), runs.run(CHANGES["added"][1](world(3)))
    copy = copy_of(runs, tmp_path)
    for path in copy.root.glob("pool/*/samples.parquet"):
        path.unlink()
    with copy.store.writing():
        pass
    with pytest.raises(InputError, match=r"samples\.parquet"):
        copy.difference(*pair)
