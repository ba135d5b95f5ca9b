"""Options of the commands that read files directly (`measure`, `select`, `inspect`), and the command `inspect`."""

import contextlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from novelsum_dagster.cli.terminal import (
    AsJson,
    Seed,
    SettingsFile,
    new_reporter,
    print_json,
    print_table,
    require_outputs,
    say,
    settings_in,
    validated,
)
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.progress import counted
from novelsum_dagster.pool.formats import ENDINGS
from novelsum_dagster.pool.forms import PARTS
from novelsum_dagster.pool.samples import ROLES
from novelsum_dagster.settings import PACKAGED_MODEL, Embedding, NearDuplicates, Pool, Settings, Source

if TYPE_CHECKING:
    from novelsum_dagster.embedding.cut import Cut
    from novelsum_dagster.pool.inspection import InspectedFile
    from novelsum_dagster.pool.snapshot import PoolSnapshot, SourceFile

_SHOWN = 300
"""Characters of a turn that `inspect` shows."""
_OFF = NearDuplicates(by="off")

Form = Annotated[
    list[str] | None,
    typer.Option(
        help="auto or any (recognised for each record), alpaca, sharegpt, messages, prompt_completion, preference or"
        " text; for one file as FILE=FORM. Repeat for several files. [default: auto]"
    ),
]
Columns = Annotated[
    list[str] | None,
    typer.Option(
        help="Which column holds which part, as prompt=q,response=meta.answer; for one file as FILE:prompt=q. Parts:"
        " messages, prompt, response, input, history, system, tools, reasoning, chosen, rejected, text."
    ),
]
Role = Annotated[
    list[str] | None, typer.Option("--role", help="Map an unknown role to a known one, e.g. narrator=user. Repeatable.")
]
Model = Annotated[str, typer.Option(help="Embedding model: the packaged one, a folder, or NAME@COMMIT on the hub.")]
Text = Annotated[
    str, typer.Option(help="Text that is embedded: turns, prompt, response, or all (with system, tools, reasoning).")
]
MaxCharacters = Annotated[int, typer.Option(min=1, help="Longer samples are rejected.")]
Rejects = Annotated[
    Path | None, typer.Option(help="Write rejected records with file, line and reason to this .jsonl or .parquet file.")
]


def _known_device(name: str) -> str:
    device: str = validated(Settings, device=name).device
    return device


@dataclass(frozen=True)
class NearOptions:
    """Options of `measure` and `select` about near-duplicates."""

    near_duplicates: Annotated[
        str | None,
        typer.Option(metavar="BY", help="How near-duplicates are found: minhash (texts), embedding, both or off."),
    ] = None
    similarity: Annotated[
        float | None, typer.Option(help="Least cosine of near-duplicates by embedding. [default: 0.9]")
    ] = None
    drop_near_duplicates: Annotated[
        bool,
        typer.Option(
            "--drop-near-duplicates",
            help="First leave out samples that resemble an earlier one; by minhash unless named.",
        ),
    ] = False

    def rule(self) -> NearDuplicates:
        """Return the settings of near-duplicates.

        Raises:
            InputError: for an unknown method, or a similarity threshold without comparison by vectors.
        """
        given: dict[str, Any] = {"drop": self.drop_near_duplicates}
        if self.near_duplicates is not None or not self.drop_near_duplicates:
            given["by"] = self.near_duplicates or "off"
        if self.similarity is not None:
            given["similarity"] = self.similarity
        rule: NearDuplicates = validated(NearDuplicates, **given)
        if self.similarity is not None and not rule.by_vectors:
            raise InputError("--similarity compares vectors; give --near-duplicates embedding or both")
        return rule


@dataclass(frozen=True)
class FileOptions:
    """Options of `measure` and `select` about reading and embedding files; `inspect` has some of them."""

    seed: Seed = 42
    form: Form = None
    columns: Columns = None
    role: Role = None
    model: Model = PACKAGED_MODEL
    text: Text = "turns"
    long: Annotated[
        str, typer.Option(help="Texts over the model's length: truncate, or windows (reads all; slower).")
    ] = "truncate"
    vectors: Annotated[
        Path | None,
        typer.Option(help="File of your own vectors (.npy, .npz, .parquet, .safetensors), one row per record read."),
    ] = None
    vectors_id: Annotated[
        str | None, typer.Option(help="Column by which --vectors and records are matched; else by row.")
    ] = None
    whiten: Annotated[
        bool, typer.Option("--whiten", help="Whiten vectors by PCA, so that all directions of variance count equally.")
    ] = False
    reduce: Annotated[int | None, typer.Option(min=1, help="Reduce vectors by PCA to this number of dimensions.")] = (
        None
    )
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", callback=_known_device)] = "auto"
    max_reject_fraction: Annotated[
        float, typer.Option(min=0, max=1, help="Fail if more than this fraction of records is bad.")
    ] = 0.01
    max_characters: MaxCharacters = 200_000
    rejects: Rejects = None

    def pool(self, paths: list[Path], near_duplicates: NearDuplicates = _OFF) -> Pool:
        """Return the settings of a pool of files.

        Raises:
            InputError: for an unknown form or part, or an option for a file that is not among them.
        """
        forms = _by_file(self.form or [], paths, "--form", "=")
        columns = _by_file(self.columns or [], paths, "--columns", ":")
        sources = tuple(
            validated(
                Source,
                path=str(path),
                form=forms.get(path, "auto"),
                columns=_mapping(columns[path]) if path in columns else {},
            )
            for path in paths
        )
        pool: Pool = validated(
            Pool,
            sources=sources,
            roles=_roles(self.role or []),
            max_reject_fraction=self.max_reject_fraction,
            max_characters=self.max_characters,
            near_duplicates=near_duplicates,
        )
        return pool

    def embedding(self) -> Embedding:
        """Return the settings of the embedding.

        Raises:
            InputError: for an invalid value, or `vectors_id` without `vectors`.
        """
        if self.vectors_id is not None and self.vectors is None:
            raise InputError("--vectors-id needs --vectors; name the file of the vectors")
        name, _, revision = (self.model, "", "") if self.vectors is not None else self.model.partition("@")
        embedding: Embedding = validated(
            Embedding,
            model=name,
            revision=revision or None,
            text=self.text,
            long=self.long,
            vectors=str(self.vectors) if self.vectors is not None else None,
            vectors_id=self.vectors_id,
            whiten=self.whiten,
            reduce=self.reduce,
        )
        return embedding


def inspect(
    files: Annotated[
        list[Path] | None, typer.Argument(help=f"Files to inspect: {ENDINGS}. Default: those of --settings.")
    ] = None,
    settings: Annotated[
        Path | None, typer.Option("--settings", "-s", help="Inspect the sources of this settings file.")
    ] = None,
    form: Form = None,
    columns: Columns = None,
    role: Role = None,
    model: Model = PACKAGED_MODEL,
    text: Text = "turns",
    max_characters: MaxCharacters = 200_000,
    rejects: Rejects = None,
    as_json: AsJson = False,
) -> None:
    """Show what files contain before anything is embedded: forms, columns, rejects, lengths, one sample of each form.

    Example: [bold]novelsum inspect data/*.jsonl[/]
    """
    from novelsum_dagster.embedding.cut import cut_of
    from novelsum_dagster.embedding.encoder import special_tokens, token_counter
    from novelsum_dagster.pool.ingest import build_snapshot
    from novelsum_dagster.pool.inspection import inspected
    from novelsum_dagster.pool.rejects import RejectsFile

    if bool(files) == (settings is not None):
        raise InputError("name files, or a settings file with --settings")
    left_out = RejectsFile(rejects)
    if settings is not None:
        chosen = settings_in(settings)
        pool, embedding, base = chosen.pool, chosen.embedding, chosen.base
    else:
        options = FileOptions(
            form=form, columns=columns, role=role, model=model, text=text, max_characters=max_characters
        )
        pool, embedding, base = options.pool(files or []), options.embedding(), Path.cwd()
    require_outputs([rejects], files_read(pool, embedding, base))
    without = pool.model_copy(update={"near_duplicates": _OFF})
    with tempfile.TemporaryDirectory(prefix="novelsum-") as folder, new_reporter().step("reading") as progress:
        root = Path(folder)
        snapshot = build_snapshot(
            without, base, root, token_counter(embedding), progress, text=embedding.text_rule, refuse_bad=False
        )
        found = inspected(snapshot, root, pool)
        left_out.take(snapshot, root)
    special = special_tokens(embedding)
    cuts = [cut_of(one.tokens, embedding, special) for one in found]
    if as_json:
        shown = [_as_json(one, cut) for one, cut in zip(found, cuts, strict=True)]
        print_json({"files": shown, "max_tokens": embedding.max_tokens})
        return
    for one, cut in zip(found, cuts, strict=True):
        _print_file(one, cut.words(embedding))


def files_read(pool: Pool, embedding: Embedding, base: Path) -> list[Path]:
    """Return the files of this machine that sources and vectors name; relative ones start at `base`.

    Sources that are missing or unreadable are left out: reading them reports it.
    """
    from novelsum_dagster.pool.readers import find_files

    found = [base / Path(embedding.vectors).expanduser()] if embedding.vectors else []
    for source in pool.sources:
        if source.path is not None:
            with contextlib.suppress(InputError):
                found += find_files(source.path, base)
    return found


def say_read(snapshot: "PoolSnapshot", root: Path, rejects: Path | None, duplicates: bool = True) -> None:
    """Report which records and near-duplicates were left out, and which content a text model cannot see.

    Args:
        snapshot: the pool.
        root: the storage folder.
        rejects: the file that rejects are written to, if any.
        duplicates: whether exact duplicates are left out, too.
    """
    # The counts of the files have dropped near-duplicates among the duplicates.
    places = snapshot.table(root, "origins", ["file", "is_first"]).to_pylist() if duplicates else []
    exact = Counter(place["file"] for place in places if not place["is_first"])
    for file in snapshot.files:
        for note in _notes(file, exact[file.file]):
            say(f"{file.file}: {note}")
    rows = snapshot.table(root, "rejects", ["file", "position", "line", "reason", "detail"])
    for row in rows.slice(0, 10).to_pylist():
        say(f"  {row['file']}, {_place(row['position'], row['line'])}: {row['reason']}: {row['detail']}")
    if len(rows) > 10:
        say(f"  and {len(rows) - 10:,} more; " + (f"all are in {rejects}" if rejects else "--rejects FILE writes all"))
    if snapshot.near_duplicates:
        advised = "left in; --drop-near-duplicates leaves them out (advised: docs/studies.md)"
        what = "left out" if snapshot.near_duplicates_dropped else advised
        say(f"{counted(snapshot.near_duplicates, 'near-duplicate')} {what}")


def _notes(file: "SourceFile", exact: int) -> Iterator[str]:
    """Yield what `say_read` says about one file; `exact` counts the exact duplicates that were left out."""
    left_out = [(file.rejects, "bad record"), (exact, "exact duplicate")]
    if any(count for count, _ in left_out):
        yield " and ".join(counted(count, name) for count, name in left_out if count) + " left out"
    for folded in file.folded if exact else ():
        differ = f"{counted(folded.records, 'exact duplicate')} {'differs' if folded.records == 1 else 'differ'}"
        yield (
            f"in column {folded.column}, which is not read as training content, {differ} from the sample kept"
            f" (record {folded.position} repeats {folded.id}); --columns maps columns"
        )
    if file.with_media:
        yield f"{counted(file.with_media, 'sample')} with images, audio or video: only the text is embedded"
    if file.unread:
        yield f"warning: {counted(file.unread, 'record')} could not be read"
    if not file.complete:
        yield "warning: damaged; its end was not read"


def say_cut(cut: "Cut", embedding: Embedding) -> None:
    """Report how many samples exceed the model's input length; as a warning if much text is not read."""
    words = cut.words(embedding)
    if words is not None:
        say(("warning: " if cut.fraction > embedding.max_cut_fraction else "") + words)


def export(
    output: Annotated[
        Path, typer.Argument(help="File to write: .npy, .npz or .safetensors (with ids), or .parquet (id, vector).")
    ],
    settings: SettingsFile = None,
) -> None:
    """Write the newest vectors of a curated pool to a file, in pool order.

    Example: [bold]novelsum vectors vectors.parquet[/]
    """
    from novelsum_dagster.artifacts.newest import newest_or_none
    from novelsum_dagster.embedding.store import VectorSet
    from novelsum_dagster.embedding.vector_files import export_vectors
    from novelsum_dagster.pool.snapshot import PoolSnapshot

    chosen = settings_in(settings)
    root = chosen.storage_path
    require_outputs([output], files_read(chosen.pool, chosen.embedding, chosen.base))
    snapshot = newest_or_none(root, "raw_pool", PoolSnapshot)
    vectors = newest_or_none(root, "embeddings", VectorSet)
    if snapshot is None or vectors is None:
        raise InputError(f"{root}: no vectors yet; run the pipeline first (novelsum run)")
    if vectors.ids_from != snapshot.key:
        raise InputError(f"{root}: the vectors belong to an earlier pool; run the pipeline again (novelsum run)")
    export_vectors(root, snapshot, vectors, output)
    say(f"{vectors.samples:,} vectors of {vectors.dimension} dimensions by {vectors.model} written to {output}")


def _by_file(values: list[str], paths: list[Path], option: str, mark: str) -> dict[Path, str]:
    """Return an option's value for each file; a value without `FILE` before the mark applies to all."""
    found: dict[Path, str] = {}
    longest_first = sorted(paths, key=lambda path: -len(str(path)))
    for value in values:
        named = next((path for path in longest_first if value.startswith(f"{path}{mark}")), None)
        if named is not None:
            found[named] = value.removeprefix(f"{named}{mark}")
        elif mark in (value if mark == "=" else value.partition("=")[0]):
            raise InputError(f"{option}: {value.rpartition(mark)[0]} is not one of the files")
        else:
            found = {**dict.fromkeys(paths, value), **found}
    return found


def _roles(values: list[str]) -> dict[str, str]:
    pairs = [value.rpartition("=")[::2] for value in values]
    for value, (name, role) in zip(values, pairs, strict=True):
        if not name or role not in ROLES:
            raise InputError(f"--role: {value!r} is not of the form narrator=user; the roles are {', '.join(ROLES)}")
    return dict(pairs)


def _mapping(text: str) -> dict[str, str]:
    parts = [part.partition("=") for part in text.split(",")]
    pairs = [(name.strip(), column.strip()) for name, _, column in parts]
    if not all(name and column for name, column in pairs):
        raise InputError(f"--columns: {text!r} is not of the form prompt=q,response=a")
    names = [name for name, _ in pairs]
    wrong = next((name for name in names if name not in PARTS or names.count(name) > 1), None)
    if wrong is not None:
        what = "is given twice" if wrong in PARTS else f"is not one of the parts {', '.join(PARTS)}"
        raise InputError(f"--columns: {wrong} {what}")
    return dict(pairs)


def _as_json(one: "InspectedFile", cut: "Cut") -> dict[str, Any]:
    facts = {**asdict(one), "file": one.file.model_dump(exclude={"arrow_schema"})}
    tokens = dict(zip(("least", "median", "p95", "most"), _quantiles(one.tokens), strict=False))
    return {**facts, "tokens": tokens, "cut": asdict(cut)}


def _quantiles(tokens: Any) -> list[int]:
    import numpy as np

    return [int(value) for value in np.quantile(tokens, [0, 0.5, 0.95, 1], method="lower")] if len(tokens) else []


def _print_file(one: "InspectedFile", cut: str | None) -> None:
    from rich.console import Console
    from rich.markup import escape

    print_table(one.file.file, ("", ""), _facts(one, cut), text=("",))
    console = Console()
    for example in one.examples:
        console.print(f"  [bold]{example.form}[/], {_place(example.position, example.line)}:")
        for turn in example.turns:
            reasoning = f"(reasoning) {turn.reasoning}" if turn.reasoning else ""
            said = " ".join(part for part in (reasoning, turn.text, *turn.calls) if part)
            shown = said if len(said) <= _SHOWN else f"{said[:_SHOWN]} ... ({len(said):,} characters)"
            console.print(f"    [bold]{turn.role}[/]: {escape(shown)}")


def _facts(one: "InspectedFile", cut: str | None) -> Iterator[tuple[str, str]]:
    """Yield the facts about a file, as rows of a table."""
    file = one.file
    unread = f", {file.unread:,} unread" if file.unread else ""
    yield "format", file.format
    yield (
        "records",
        f"{file.read:,} read: {file.kept:,} samples, {counted(file.duplicates, 'exact duplicate')},"
        f" {counted(file.rejects, 'reject')}{unread}",
    )
    yield "forms", ", ".join(f"{form} {count:,}" for form, count in one.forms.items()) or "none"
    yield "read as content", ", ".join(file.content_columns) or "none"
    yield "not read", ", ".join(file.other_columns) or "none"
    if len(one.tokens):
        least, median, p95, most = _quantiles(one.tokens)
        yield "tokens", f"{least:,} to {most:,}, median {median:,}, 95 % up to {p95:,}"
        yield "beyond the model", cut or "nothing: every text fits"
    if file.with_media:
        yield "media", f"{counted(file.with_media, 'sample')}; only the text is embedded"
    if file.open_ended:
        yield "no answer at the end", f"{counted(file.open_ended, 'sample')}: the last turn is not the assistant's"
    for folded in file.folded:
        count = counted(folded.records, "exact duplicate")
        yield f"differ in {folded.column}", f"{count}, as record {folded.position}, which repeats {folded.id[:8]}"
    for kind in one.rejects:
        yield f"{kind.reason} {kind.records:,}", f"first: {_place(kind.position, kind.line)}: {kind.detail}"


def _place(position: int, line: int | None) -> str:
    return f"record {position}" + (f", line {line}" if line else "")
