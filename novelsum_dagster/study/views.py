"""Other vectors of a study's samples: of prompts or responses alone, or with other pooling, whitening or reduction.

Belongs here: embedding a study's pool by another rule. Does not: how vectors are computed (`embedding`), the study's
own pool (`pool`).
"""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import content_key, write_table
from novelsum_dagster.common.progress import Reporter
from novelsum_dagster.embedding.encoder import token_counter
from novelsum_dagster.embedding.own_vectors import PoolAt
from novelsum_dagster.embedding.store import VectorSet, pool_vectors
from novelsum_dagster.embedding.vectors_of_pool import Work, vectors_of_pool
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import Embedding, NearDuplicates, Representation, Settings, TextRule, problems
from novelsum_dagster.study.pool import Represented, StudyData, mean_squared_distances, neighbors_wanted, once


class StudyTexts(Artifact):
    """The samples of a pool with other texts: `folder` has them as a snapshot's, in the order of the pool.

    `kept` of them have no text under that rule, and keep the pool's.
    """

    folder: str
    kept: int


class StudyView(Artifact):
    """A study's samples under one representation.

    `file` has one row per sample that sets are chosen from: the mean squared distance to its K nearest others, one
    column for each K. `kept` samples have no text of that kind and use the text that they have in the pool.
    """

    snapshot: PoolSnapshot
    vectors: VectorSet
    file: str
    kept: int


def embedding_of(representation: Representation, settings: Embedding) -> Embedding:
    """Return the settings by which a representation's vectors are made.

    Raises:
        InputError: if the pool's vectors are not made by a model, or the rule does not fit `embedding`.
    """
    if settings.vectors is not None:
        raise InputError(
            f"study.representations: {representation.name} needs a model, but embedding.vectors supplies"
            " vectors; remove one of them"
        )
    changed = {**representation.model_dump(exclude={"name"}), "include": ()}
    try:
        return Embedding.model_validate({**settings.model_dump(), **changed})
    except ValidationError as error:
        raise InputError(problems(error, f"study.representations.{representation.name}")) from None


def build_view(data: StudyData, representation: Representation, settings: Settings, reporter: Reporter) -> Represented:
    """Embed a study's samples under another rule, those that the store lacks, and search density among them.

    Args:
        data: the study's pool.
        representation: the rule.
        settings: of the curation.
        reporter: shows progress.

    Raises:
        InputError: if sources have changed since the pool was read, or as `vectors_of_pool` does.
        ValueError: as `densities` does.
    """
    root, name = data.root, representation.name
    embedding = embedding_of(representation, settings.embedding)
    snapshot, kept = data.snapshot, 0
    if embedding.text_rule != settings.embedding.text_rule:
        with reporter.step(f"texts of {name}"):
            texts = _texts(data, embedding.text_rule, settings)
        snapshot, kept = _snapshot(data.snapshot, texts), texts.kept
    with reporter.step(f"embedding {name}") as progress:
        work = Work(progress, device=settings.device)
        vectors = vectors_of_pool(PoolAt(snapshot, root, settings.base), embedding, root, work)
    novelsum = settings.novelsum
    wanted = neighbors_wanted(novelsum, settings.study)
    search = [novelsum.neighbor_policy, novelsum.density_index, novelsum.min_recall]
    key = content_key({"pool": data.pool.key, "vectors": vectors.key, "neighbors": wanted, "search": search})
    file = f"study/view={key}/densities.parquet"

    def build() -> StudyView:
        _, rows = pool_vectors(root, snapshot, vectors)
        with reporter.step(f"density of {name}") as progress:
            found = mean_squared_distances(rows[data.own.offered], wanted, novelsum, progress)
        write_table(pa.table(found), root / file)
        return StudyView(key=key, snapshot=snapshot, vectors=vectors, file=file, kept=kept)

    view = once(root, f"study/view={key}/study_view.json", StudyView, build)
    return Represented(root, key, view.snapshot, view.vectors, view.file, data.own.offered, view.kept)


def views_of(data: StudyData, settings: Settings, reporter: Reporter) -> dict[str, Represented]:
    """Return every representation that the settings name besides the pool's own, by name.

    Raises:
        InputError, ValueError: as `build_view` does.
    """
    return {one.name: build_view(data, one, settings, reporter) for one in settings.study.representations}


def _snapshot(pool: PoolSnapshot, texts: StudyTexts) -> PoolSnapshot:
    """Return the pool with other texts; near-duplicates that the pool drops are not in it."""
    changed = {"key": texts.key, "folder": texts.folder, "near_duplicates_dropped": False}
    return pool.model_copy(update=changed)


def _texts(data: StudyData, rule: TextRule, settings: Settings) -> StudyTexts:
    """Read the sources again for other texts of the pool's samples, unless that has been done.

    Raises:
        InputError: if a file of the sources has changed since the pool was read.
    """
    snapshot, root = data.snapshot, data.root
    key = content_key({"snapshot": snapshot.key, "text": rule.choice, "include": rule.include})
    folder = f"study/texts={key}"

    def build() -> StudyTexts:
        pool = settings.pool.model_copy(update={"near_duplicates": NearDuplicates(by="off")})
        count_tokens = token_counter(settings.embedding)
        only = {file.file for file in snapshot.files}
        with tempfile.TemporaryDirectory() as temporary:
            read = build_snapshot(
                pool, settings.base, Path(temporary), count_tokens,
                s3=settings.s3, only=only, text=rule, refuse_bad=False,
            )  # fmt: skip
            other = read.samples(Path(temporary), ["id", "text", "text_tokens"])
        now = {file.file: file.sha256 for file in read.files}
        if changed := [file.file for file in snapshot.files if now.get(file.file) != file.sha256]:
            raise InputError(f"{changed[0]} has changed since the pool was read; run again: novelsum run")
        own = snapshot.samples(root, ["id", "source", "text", "tokens", "text_tokens"])
        place = pc.index_in(own["id"], value_set=other["id"].combine_chunks())
        columns = {name: pc.coalesce(other[name].take(place), own[name]) for name in ("text", "text_tokens")}
        table = pa.table({**{name: own[name] for name in ("id", "source", "tokens")}, **columns})
        write_table(table, root / folder / "samples.parquet")
        return StudyTexts(key=key, folder=folder, kept=place.null_count)

    return once(root, f"{folder}/study_texts.json", StudyTexts, build)
