"""The data card: a subset ready for publication, with its data, a description and a manifest.

Belongs here: the card's content, its folder. Does not: the measures, the checks.

| file | content |
|---|---|
| README.md | the card, with the header that Hugging Face reads |
| subset.jsonl, original/, picks.parquet, eligibility.parquet | copies of the subset's files |
| manifest.json | the card's inputs, for programs; SHA-256 of every other file |
| SHA256SUMS | the same for `sha256sum --check` |
"""

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import output_folder
from novelsum_dagster.artifacts.provenance import Provenance
from novelsum_dagster.artifacts.verdicts import Verdict, describe
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import (
    content_key,
    file_hash,
    place_folder,
    temporary_folder,
    write_bytes,
    write_json,
)
from novelsum_dagster.diversity.measures import MEASURES
from novelsum_dagster.embedding.store import VectorSet
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.report.novelsum_report import RANDOM, SELECTED, NovelSumReport, SetMeasure
from novelsum_dagster.report.tables import coverage, lengths
from novelsum_dagster.report.templates import render
from novelsum_dagster.selection.picks import ChosenBy
from novelsum_dagster.selection.subset import ELIGIBILITY, Subset, rows_of
from novelsum_dagster.settings import Settings

NOT_GIVEN = "not given"
_TEMPLATE = Path(__file__).with_name("card.md")
_PAPER = (
    "Yang et al.: Measuring Data Diversity for Instruction Tuning: A Systematic Analysis and A Reliable Metric."
    " ACL 2025 (NovelSum and NovelSelect)"
)
_PARTS = ("subset.jsonl", "picks.parquet", ELIGIBILITY, "original")
_CHOSEN_BY: dict[ChosenBy, str] = {
    "score": "by score",
    "seed": "the first, drawn at random (seed {seed})",
    "drawn": "drawn at random (seed {seed})",
    "threshold": "by a threshold of similarity",
    "must_include": "required by the settings",
    "kept": "kept from an earlier subset",
    "exchange": "in exchanges at the end",
}
_BARRED_BY = {
    "must_exclude": "The settings (selection.must_exclude)",
    "budget": "What was left of the token budget",
    "cap": "Caps that were reached",
    "floor": "Places reserved for floors",
    "partition": "The selection in parts",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_NOTABLE = 0.1
"""A ratio this far from 1 is called a bias."""


class DataCard(Artifact):
    """A subset with its card, in `folder`; `digest` is the SHA-256 of its manifest."""

    folder: str
    digest: str


def build_card(
    root: Path,
    snapshot: PoolSnapshot,
    vectors: VectorSet,
    subset: Subset,
    report: NovelSumReport,
    *,
    made: Provenance,
    run_id: str,
    verdicts: Sequence[Verdict],
    settings: Settings,
) -> DataCard:
    """Write the data card of a subset, under `root/cards`.

    Args:
        root: the storage folder.
        snapshot, vectors, subset, report: the artifacts described by the card.
        made: record of the subset.
        run_id: of the run that made the subset first, so that a run that changes nothing makes the same card.
        verdicts: of all checks.
        settings: of the curation.

    Raises:
        InputError: if a blocking check failed.
    """
    failed = [_in_words(one) for one in verdicts if one.blocking and not one.passed]
    if failed:
        raise InputError("no card for a subset whose checks failed: " + "; ".join(failed))
    facts = {**_facts(root, snapshot, vectors, subset, report, verdicts, settings), "run_id": run_id}
    manifest: dict[str, Any] = {
        "title": facts["title"],
        "signed_off_by": settings.card.signed_off_by,
        "run_id": run_id,
        "outputs": {**made.inputs, "selected_subset": subset.key, "novelsum_report": report.key},
        "settings": {**made.settings, **made.config},
        "seed": made.seed,
        "sources": [
            {"source": file.source, "file": file.file, "sha256": file.sha256, "records": file.read, "kept": file.kept}
            for file in snapshot.files
        ],
        "licences": {row["source"]: row["licence"] for row in facts["sources"]},
        "model": {"name": vectors.model, "revision": vectors.revision},
        "measures": [row.model_dump() for row in report.sets],
        "explanation": report.explanation.model_dump(mode="json") if report.explanation else None,
        "checks": [{"check": f"{one.step}: {one.name}", "passed": one.passed} for one in verdicts],
        "versions": made.versions,
        "git_revision": made.git_revision,
        "citations": facts["citations"],
    }
    with temporary_folder(root / "cards") as folder:
        _copy_parts(root / subset.folder, folder)
        write_bytes(render(_TEMPLATE, **facts).encode(), folder / "README.md")
        sums = {path.relative_to(folder).as_posix(): file_hash(path) for path in _files(folder)}
        write_json({**manifest, "sha256": sums}, folder / "manifest.json")
        digest = file_hash(folder / "manifest.json")
        lines = [f"{sha256}  {name}\n" for name, sha256 in {**sums, "manifest.json": digest}.items()]
        write_bytes("".join(lines).encode(), folder / "SHA256SUMS")
        key = content_key(digest)
        place_folder(folder, root / output_folder("cards", key))
    return DataCard(key=key, folder=output_folder("cards", key), digest=digest)


def _copy_parts(subset: Path, folder: Path) -> None:
    for name in _PARTS:
        source = subset / name
        if source.is_dir():
            shutil.copytree(source, folder / name)
        elif source.exists():  # Subsets of earlier releases have no eligibility.parquet.
            shutil.copyfile(source, folder / name)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _facts(
    root: Path,
    snapshot: PoolSnapshot,
    vectors: VectorSet,
    subset: Subset,
    report: NovelSumReport,
    verdicts: Sequence[Verdict],
    settings: Settings,
) -> dict[str, Any]:
    samples = snapshot.samples(root, ["id", "source", "tokens", "turns", "characters"])
    rows = rows_of(samples["id"].to_pylist(), subset.picks(root, ["id"])["id"])
    licences = _licences(snapshot)
    shares = [
        {**row, "licence": ", ".join(one or NOT_GIVEN for one in licences[row["source"]])}
        for row in coverage(samples["source"], rows).to_pylist()
    ]
    citations = dict.fromkeys([settings.card.citation, *(file.citation for file in snapshot.files), _PAPER])
    title = settings.card.title or f"A diverse subset of {_listed([row['source'] for row in shares])}"
    return {
        "title": title,
        "front_matter": _front_matter(title, settings, licences, len(rows)),
        "size": len(rows),
        "pool": snapshot.kept,
        **{name: getattr(snapshot, name) for name in ("read", "duplicates", "rejects", "near_duplicates")},
        "near_duplicates_dropped": snapshot.near_duplicates_dropped,
        "strategy": subset.settings.strategy,
        "selection": subset.key,
        "picking": _picking(subset.eligibility(root), subset.settings.seed),
        "signed_off_by": settings.card.signed_off_by,
        "sources": shares,
        "unlicensed": [row["source"] for row in shares if None in licences[row["source"]] and row["selected"]],
        "measures": _measures(report),
        "explanation": report.explanation.sentences if report.explanation else (),
        "biases": [*_source_biases(shares), *_length_biases(lengths(samples, rows).to_pylist())],
        "warnings": [_in_words(one) for one in verdicts if not one.passed],
        "model": vectors.model,
        "cut_samples": vectors.cut_samples,
        "unread": f"{vectors.unread_fraction:.1%}",
        "max_tokens": vectors.max_tokens,
        "revision": vectors.revision,
        "citations": [citation for citation in citations if citation],
    }


def _picking(eligibility: pa.Table | None, seed: int) -> list[str]:
    """Return sentences on how the picks were made and where limits ruled samples out; empty if it is not recorded."""
    if eligibility is None:
        return []
    ways = pc.value_counts(eligibility["chosen_by"]).to_pylist()
    made = ", ".join(f"{one['counts']:,} {_CHOSEN_BY[one['values']].format(seed=seed)}" for one in ways)
    sentences = [f"Of the {len(eligibility):,} picks: {made}."]
    for bar, what in _BARRED_BY.items():
        counts = eligibility[bar].fill_null(0).to_numpy()
        if counts.any():
            sentences.append(f"{what} ruled out up to {counts.max():,} samples at {(counts > 0).sum():,} picks.")
    return sentences


def _in_words(verdict: Verdict) -> str:
    return f"{verdict.step}: {verdict.name}: {describe(verdict.failures)}"


def _licences(snapshot: PoolSnapshot) -> dict[str, list[str | None]]:
    """Return the licences of each source; files of the same name may have several."""
    found: dict[str, list[str | None]] = {}
    for file in snapshot.files:
        known = found.setdefault(file.source, [])
        if file.licence not in known:
            known.append(file.licence)
    return found


def _front_matter(title: str, settings: Settings, licences: dict[str, list[str | None]], size: int) -> str:
    distinct = {one for several in licences.values() for one in several}
    licence = settings.card.licence or (next(iter(distinct)) if len(distinct) == 1 else None)
    header = {
        "pretty_name": title,
        "license": licence or "other",
        "task_categories": ["text-generation"],
        "tags": ["instruction-tuning", "diversity", "novelsum"],
        "size_categories": [next((name for limit, name in _SIZES if size < limit), "n>1M")],
        "configs": [{"config_name": "default", "data_files": "subset.jsonl"}],
    }
    text: str = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return text


def _measures(report: NovelSumReport) -> list[dict[str, str]]:
    values = {(row.set_name, row.measure): row for row in report.sets}
    return [
        {
            "measure": known.label + ("" if known.higher_is_diverse else " ↓"),
            **{name: _with_interval(values[name, key]) for name in (RANDOM, SELECTED)},
        }
        for key, known in MEASURES.items()
        if (RANDOM, key) in values and (SELECTED, key) in values
    ]


def _with_interval(row: SetMeasure) -> str:
    return f"{row.value:,.4f} ({row.low:,.4f} to {row.high:,.4f})"


def _source_biases(shares: Iterable[dict[str, Any]]) -> list[str]:
    notable = [
        (row["selected_share"] / row["pool_share"], row)
        for row in shares
        if abs(row["selected_share"] / row["pool_share"] - 1) > _NOTABLE
    ]
    return [
        f"{ratio:.2f} times the share of {row['source']} ({row['pool_share']:.1%} of the pool,"
        f" {row['selected_share']:.1%} of the subset)"
        for ratio, row in sorted(notable, key=lambda pair: -abs(np.log(max(pair[0], 1e-9))))
    ] or ["the pool's mix of sources, to a tenth"]


def _length_biases(rows: Iterable[dict[str, Any]]) -> list[str]:
    means = {row["quantity"]: row for row in rows if row["statistic"] == "mean"}
    return [
        f"{row['ratio']:.2f} times as many {name} a sample ({row['pool']:,.1f} in the pool, {row['subset']:,.1f} in the"
        " subset, on average)"
        for name, row in means.items()
        if row["ratio"] is not None and abs(row["ratio"] - 1) > _NOTABLE
    ] or ["samples of the pool's lengths, to a tenth"]


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more sources" if len(names) > most else ""
    return ", ".join(names[:most]) + more
