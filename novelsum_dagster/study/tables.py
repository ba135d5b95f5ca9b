"""The facts of a study as small tables that can be stored in a repository and read without the pool.

Belongs here: trials.csv, measures.csv, sets.csv and studies.csv, written and read. Does not: what follows from them
(`statistics`, `findings`).

| file | a row is |
|---|---|
| trials.csv | a training and a source: the bits per byte of its held-out texts |
| measures.csv | a measure of a set, under a representation (of texts themselves: none) |
| sets.csv | a set: how it was chosen, tokens, near-duplicates, bits per byte of a bigram model |
| studies.csv | a fact of the study: settings, counts, versions; nothing of the machine |

Numbers have six significant digits.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes
from novelsum_dagster.diversity.measures import OF_TEXTS
from novelsum_dagster.settings import OWN_REPRESENTATION, Settings
from novelsum_dagster.study.correlate import csv_number, csv_rows
from novelsum_dagster.study.run import Studied
from novelsum_dagster.study.sets import Recipe

SEEN, UNSEEN = "seen", "unseen"
"""Kinds of sources: seen, with samples in the sets, and unseen, without."""
_PACKAGES = ("novelsum-dagster", "torch", "transformers", "tokenizers", "numpy", "faiss-cpu", "scikit-learn")

COLUMNS = {
    "trials": (
        "pool", "set", "strategy", "variant", "density_side", "chosen_by", "size", "set_seed", "training_seed",
        "source", "kind", "bits_per_byte",
    ),
    "measures": ("pool", "set", "representation", "measure", "value"),
    "sets": (
        "pool", "set", "strategy", "variant", "copies", "density_side", "chosen_by", "size", "set_seed", "tokens",
        "distinct_tokens", "tokens_a_sample", "characters_a_sample", "near_duplicates", "close", "bigram_seen",
        "bigram_unseen",
    ),
    "studies": ("pool", "fact", "value"),
}  # fmt: skip
"""The columns of each file, in order."""

_WHOLE = {"size", "set_seed", "training_seed", "copies"}
_REAL = {
    "bits_per_byte", "tokens", "distinct_tokens", "tokens_a_sample", "characters_a_sample", "near_duplicates", "close",
    "bigram_seen", "bigram_unseen",
}  # fmt: skip

Rows = list[dict[str, Any]]


def tables_of(found: Studied, settings: Settings, pool: str) -> dict[str, Rows]:
    """Return the rows of each table by its name.

    Args:
        found: the results of a study so far.
        settings: of the study.
        pool: its name.
    """
    return {
        "trials": _trials(found, settings.study.unseen, pool),
        "measures": _measures(found, pool),
        "sets": _sets(found, settings.study.unseen, pool),
        "studies": [{"pool": pool, "fact": name, "value": value} for name, value in _facts(found, settings).items()],
    }


def write_tables(tables: Mapping[str, Rows], folder: Path) -> None:
    """Write each table as `folder`/NAME.csv; files of these names are replaced."""
    for name, rows in tables.items():
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(COLUMNS[name])
        for row in rows:
            writer.writerow([_written(row[column]) for column in COLUMNS[name]])
        write_bytes(text.getvalue().encode(), folder / f"{name}.csv")


def read_tables(folders: Sequence[Path]) -> dict[str, Rows]:
    """Return the rows of each table from the folders of several studies, put together; numbers as numbers.

    Raises:
        InputError: for a folder without the tables, a table that cannot be read, or a pool that two folders have.
    """
    found: dict[str, Rows] = {name: [] for name in COLUMNS}
    pools: Counter[str] = Counter()
    for folder in folders:
        read = {name: _read(folder / f"{name}.csv", columns) for name, columns in COLUMNS.items()}
        pools.update({row["pool"] for row in read["sets"]})
        for name, rows in read.items():
            found[name] += rows
    if twice := [pool for pool, count in pools.items() if count > 1]:
        raise InputError(f"the pool {twice[0]} is in two of the folders; give each study a name (study.name)")
    return found


def _read(path: Path, columns: Sequence[str]) -> Rows:
    if not path.exists():
        raise InputError(f"{path}: is missing; name a folder that study correlate --export has written")
    return [
        {
            **row,
            **{name: int(csv_number(path, line, row, name)) for name in _WHOLE & row.keys()},
            **{name: csv_number(path, line, row, name) if row[name] else None for name in _REAL & row.keys()},
        }
        for line, row in csv_rows(path, set(columns))
    ]


def _written(value: Any) -> Any:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def _place(recipe: Recipe, pool: str) -> dict[str, Any]:
    return {
        "pool": pool,
        "set": recipe.name,
        "strategy": recipe.strategy,
        "variant": recipe.variant,
        "density_side": recipe.density_side if recipe.strategy == "novelselect" else None,
        "chosen_by": recipe.representation,
        "size": recipe.size,
        "set_seed": recipe.seed,
    }


def _trials(found: Studied, unseen: str | None, pool: str) -> Rows:
    return [
        {
            **_place(found.sets[name].recipe, pool),
            "training_seed": seed,
            "source": source,
            "kind": UNSEEN if source == unseen else SEEN,
            "bits_per_byte": loss,
        }
        for name, trained in found.trainings.items()
        for seed, one in trained.items()
        for source, loss in one.losses.items()
    ]


def _measures(found: Studied, pool: str) -> Rows:
    return [
        {
            "pool": pool,
            "set": name,
            "representation": None if key in OF_TEXTS else representation,
            "measure": key,
            "value": value.value,
        }
        for representation, by_set in found.measures.items()
        for name, one in by_set.items()
        for key, value in one.values.items()
    ]


def _sets(found: Studied, unseen: str | None, pool: str) -> Rows:
    rows = []
    for name, facts in found.facts.items():
        recipe = found.sets[name].recipe
        rows.append(
            {
                **_place(recipe, pool),
                "copies": recipe.copies,
                "tokens": facts.tokens,
                "distinct_tokens": facts.distinct_tokens,
                "tokens_a_sample": facts.tokens / recipe.size,
                "characters_a_sample": facts.characters,
                "near_duplicates": facts.near_duplicates,
                "close": facts.close,
                "bigram_seen": float(np.mean([loss for source, loss in facts.bigram.items() if source != unseen])),
                "bigram_unseen": None if unseen is None else facts.bigram[unseen],
            }
        )
    return rows


def _facts(found: Studied, settings: Settings) -> dict[str, Any]:
    study, data = settings.study, found.data
    training, embedding, novelsum = study.training, settings.embedding, settings.novelsum
    sources = list(data.held_out)
    facts = {
        "sources": _listed(sorted(sources)),
        "unseen": study.unseen,
        "samples": data.pool.samples,
        "held_out_of_each_source": study.held_out,
        "near_duplicates_dropped": data.snapshot.near_duplicates_dropped,
        **{f"near_duplicates.{name}": value for name, value in settings.pool.near_duplicates.model_dump().items()},
        "sets": len(found.sets),
        "sizes": _listed(dict.fromkeys(study.sizes)),
        "set_seeds": _listed(dict.fromkeys(study.seeds)),
        "training_seeds": _listed(study.seeds_of_training),
        "training_model": _model(training.model) or "from scratch, 1.3 million weights",
        "training_revision": training.revision,
        "training_tokens": training.tokens,
        "training_context": training.context,
        "training_batch_size": training.batch_size,
        "training_learning_rate": training.learning_rate,
        "training_vocabulary": training.vocabulary,
        "embedding_model": _model(embedding.model),
        "embedding_revision": data.vector_set.revision,
        "embedding_max_tokens": embedding.max_tokens,
        f"representation {OWN_REPRESENTATION}": f"text: {embedding.text}",
    }
    for one in study.representations:
        described = ", ".join(f"{key}: {value}" for key, value in one.model_dump(exclude={"name"}).items())
        facts[f"representation {one.name}"] = described
        facts[f"representation {one.name}, samples without such text"] = found.views[one.name].kept
    facts |= {f"novelsum.{name}": value for name, value in novelsum.model_dump().items()}
    measures = settings.measures.model_dump()
    g_vendi = measures.pop("g_vendi")
    facts |= {f"measures.{name}": value for name, value in measures.items()}
    if g_vendi["model"]:
        facts |= {f"measures.g_vendi.{name}": value for name, value in g_vendi.items()}
        facts["measures.g_vendi.model"] = _model(g_vendi["model"])
    facts |= {"snapshot": data.snapshot.key, "vectors": data.vector_set.key}
    return facts | {f"version {name}": version(name) for name in _PACKAGES}


def _model(name: str | None) -> str | None:
    """Return a model's name for tables that are passed on: of a folder the last part, not the path on this machine."""
    return Path(name).name if name and Path(name).expanduser().is_dir() else name


def _listed(values: Sequence[Any] | Mapping[Any, None]) -> str:
    return " ".join(map(str, values))
