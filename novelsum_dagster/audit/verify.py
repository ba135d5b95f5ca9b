"""Verification of a storage folder: `novelsum verify`.

Belongs here: every hash and copy of a value that can be compared, and what cannot be. Does not: the comparison before a
command reads (`verified`), rebuilding a subset (`reproduce`), what somebody signs (`signature`).

Run files are taken as the truth for the lineage's rows, and the records in them for the files of outputs. What is
compared with what:

| what | with |
|---|---|
| run files, records, newest artifacts | the SHA-256 that each has of itself |
| tables and views of `lineage.duckdb` | hashes of what was last written to it |
| rows of the lineage | the rows in the run files; those of selections and measures also with the outputs |
| records | the copies in the run files |
| files of outputs | the SHA-256 in the records; a file in an output's folder that no record names fails |
| views | the files behind them, row by row, as a sum of hashes |
| data cards | their key, which is a hash of the manifest, and the manifest's sums |
| signatures | the keys that the caller allows |
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from novelsum_dagster.artifacts.artifact import Artifact
from novelsum_dagster.artifacts.layout import CHECKS, OUTPUTS, RECORDS, output_folder, record_file
from novelsum_dagster.artifacts.provenance import Provenance, StoredFile
from novelsum_dagster.audit.signature import Signed, signatures_of, verified_signature
from novelsum_dagster.audit.verified import described, state_of, stated
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import SEAL, content_key, file_hash, read_json, unsealed
from novelsum_dagster.common.liveness import live_runs
from novelsum_dagster.common.progress import Progress, no_progress
from novelsum_dagster.lineage.query import Connection, all_rows
from novelsum_dagster.lineage.runs import REMOVED
from novelsum_dagster.lineage.store import RUN_FILES, TABLES, VIEWS, LineageStore, changed_contents, quoted, table_names

Outcome = Literal["ok", "failed", "not checked"]

_OF_RUNS = ("runs", "steps", "run_outputs", "provenance")
"""Tables whose first column is the run; that of the others is an output."""
_NOT_COMPARED = {"novelties": ("file",)}
"""Columns that gc may change in the database alone."""
_EARLIER = "written by an earlier release, which recorded no hash of it"
_LIVE = "the run is in progress"
_THREADS = 4
_KEY_OF_VIEW = {view: OUTPUTS[pattern.split("/")[0]] for view, (pattern, _) in VIEWS.items()}
"""By view, the column that has the key of the output, which is the name in its folder."""


@dataclass(frozen=True)
class Check:
    """One thing that was compared, or could not be.

    Attributes:
        kind: the row of the table in which it counts, e.g. "run files" or "density".
        name: file, table or view.
        outcome: "ok", "failed" or "not checked".
        reason: why it failed or was not checked; empty if it is ok.
        run_id: of the run that it belongs to, if to one.
        bytes: read for it.
    """

    kind: str
    name: str
    outcome: Outcome
    reason: str = ""
    run_id: str | None = None
    bytes: int = 0


@dataclass(frozen=True)
class Verification:
    """What was checked of some runs, or of a whole storage folder."""

    runs: tuple[str, ...]
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(check.outcome != "failed" for check in self.checks)

    def having(self, outcome: Outcome) -> list[Check]:
        """Return the checks with an outcome."""
        return [check for check in self.checks if check.outcome == outcome]

    def totals(self) -> dict[str, dict[str, int]]:
        """Return for each kind the number of checks by outcome, and the bytes read."""
        found: dict[str, dict[str, int]] = {}
        for check in self.checks:
            row = found.setdefault(check.kind, {"ok": 0, "failed": 0, "not checked": 0, "bytes": 0})
            row[check.outcome] += 1
            row["bytes"] += check.bytes
        return found


def verify(
    store: LineageStore,
    name: str | None = None,
    progress: Progress = no_progress,
    allowed_signers: Path | None = None,
) -> Verification:
    """Compare every recorded hash and every copy of a value in a storage folder; changes nothing but the database.

    The database is brought up to date first, as any command does that opens it.

    Args:
        store: of the storage.
        name: of a run, or a prefix of its id; None checks all runs and all outputs.
        progress: called with the bytes of outputs read and their total.
        allowed_signers: file of the keys that may have signed, in the form of `ssh-keygen`; None checks no signature.

    Raises:
        InputError: if there is no lineage, no run or several have that name, or `ssh-keygen` is missing.
    """
    try:
        with store.reading():
            pass
    except InputError:
        if not store.path.exists() and not next(store.root.glob(RUN_FILES), None):
            raise
    found = _Found(store)
    run_ids = found.scope(name)
    everything = name is None
    files = list(_files(found, run_ids, everything, progress))
    damaged = {check.name for check in files if check.outcome == "failed"}
    checks = [
        *_run_files(found, run_ids),
        *_database(found, run_ids, everything),
        *_against_outputs(found, run_ids, damaged),
        *_records(found, run_ids, everything),
        *files,
        *_views(found, run_ids, damaged),
        *_cards(found, run_ids, everything),
        *(_artifacts(store.root) if everything else ()),
        *_signatures(found, run_ids, everything, allowed_signers),
        *(_unhashed(store.root) if everything else ()),
    ]
    return Verification(run_ids, tuple(checks))


@dataclass
class _Found:
    """The run files and records of a storage folder.

    Attributes:
        store: of the storage.
        written: rows by run and table, of the run files that are whole.
        damaged: why the others are not, by run.
        unsealed: runs whose file has no SHA-256 of itself.
        live: runs in progress, whose file and rows change meanwhile.
    """

    store: LineageStore
    written: dict[str, dict[str, list[dict[str, Any]]]] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    unsealed: set[str] = field(default_factory=set)
    live: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.live.update(live_runs(self.root))
        for path in sorted(self.root.glob(RUN_FILES)):
            try:
                values = read_json(path)
                rows = unsealed(values)
                if not isinstance(rows, dict) or not all(isinstance(one, list) for one in rows.values()):
                    raise ValueError("it is no JSON object of lists")
                self.written[path.stem] = rows
                if SEAL not in values:
                    self.unsealed.add(path.stem)
            except (OSError, ValueError) as error:
                self.damaged[path.stem] = str(error)

    @property
    def root(self) -> Path:
        return self.store.root

    def scope(self, name: str | None) -> tuple[str, ...]:
        """Return the ids of the runs to check, oldest first."""
        known = [*self.written, *self.damaged]
        known += [run_id for run_id in _run_ids(self.store) if run_id not in known]
        fitting = [run_id for run_id in known if run_id == name] or [
            run_id for run_id in known if run_id.startswith(name or "")
        ]
        if name is not None and len(fitting) != 1:
            listed = ", ".join(fitting[:5]) or f"the runs are {', '.join(known[-3:]) or 'none'}"
            raise InputError(f"{len(fitting) or 'no'} runs begin with {name}: {listed}")
        return tuple(sorted(fitting, key=lambda run_id: (self.started(run_id), run_id)))

    def started(self, run_id: str) -> str:
        rows = self.written.get(run_id, {}).get("runs", [])
        return str(rows[0].get("started_at", "")) if rows else ""

    def outputs(self, run_id: str) -> dict[str, Any]:
        """Return the keys of a run's outputs; empty if it has none, or gc removed its data."""
        rows = self.written.get(run_id, {}).get("run_outputs", [])
        return rows[0] if rows and not rows[0].get(REMOVED) else {}

    @cached_property
    def recorded(self) -> dict[str, dict[str, Provenance]]:
        """The records in the run files, by run and asset, of runs that have their data."""
        return {
            run_id: {
                row["asset"]: Provenance.model_validate(json.loads(row["record"]))
                for row in rows.get("provenance", [])
                if self.outputs(run_id)
            }
            for run_id, rows in self.written.items()
        }

    @cached_property
    def present(self) -> dict[str, Provenance | str]:
        """The record files by path in the storage folder; the reason, if one is damaged."""
        found: dict[str, Provenance | str] = {}
        for path in sorted(self.root.glob(f"{RECORDS}/*/*.json")):
            try:
                made = Provenance.model_validate_json(path.read_bytes())
                is_of_this = (made.asset, made.output) == (path.parent.name, path.stem)
                state = made if is_of_this else f"it is the record of {made.asset} {made.output}"
            except (OSError, ValueError) as error:
                state = _first_line(error)
            found[path.relative_to(self.root).as_posix()] = state
        return found

    def records(self, run_ids: Collection[str], everything: bool) -> Iterator[tuple[str, Provenance]]:
        """Yield (run, record) of the runs' outputs: those in the run files, their cards, all others if asked for."""
        seen = set()
        for run_id in run_ids:
            for made in self.recorded.get(run_id, {}).values():
                seen.add((made.asset, made.output))
                yield run_id, made
        subsets = {self.outputs(run_id).get("selection") for run_id in run_ids}
        for state in self.present.values():
            if isinstance(state, str) or (state.asset, state.output) in seen:
                continue
            if everything or (state.asset == "data_card" and state.inputs.get("selected_subset") in subsets):
                yield state.run_id, state


def _first_line(error: Exception) -> str:
    """Return the reason of an error; of pydantic's, without its frame."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    stated = [line.split("Value error, ", 1)[1].split(" [type=")[0] for line in lines if "Value error, " in line]
    return (stated or lines or [type(error).__name__])[0]


# Run files and the database.


def _run_ids(store: LineageStore) -> list[str]:
    with store.as_it_is() as connection:
        if connection is None or "runs" not in table_names(connection):
            return []
        return [row[0] for row in connection.execute("SELECT run_id FROM runs ORDER BY started_at").fetchall()]


def _run_files(found: _Found, run_ids: Iterable[str]) -> Iterator[Check]:
    for run_id in run_ids:
        name = f"runs/{run_id}.json"
        if run_id in found.live:
            yield Check("run files", name, "not checked", _LIVE, run_id)
        elif run_id in found.damaged:
            reason = f"{found.damaged[run_id]}; restore it (novelsum restore, or a backup)"
            yield Check("run files", name, "failed", reason, run_id)
        elif run_id not in found.written:
            yield Check("run files", name, "failed", "it is missing, and the database has the run", run_id)
        elif run_id in found.unsealed:
            yield Check("run files", name, "not checked", _EARLIER, run_id)
        else:
            yield Check("run files", name, "ok", run_id=run_id)


def _database(found: _Found, run_ids: Collection[str], everything: bool) -> Iterator[Check]:
    """Yield a check for the database as a whole, and one for each table of the runs."""
    name = found.store.path.name
    if not found.store.path.exists():
        yield Check("database", name, "not checked", "it is missing; the next command builds it from the run files")
        return
    with found.store.as_it_is() as connection:
        if connection is None:
            yield Check("database", name, "failed", "it cannot be opened; run novelsum rebuild-lineage")
            return
        changed = changed_contents(connection)
        if changed is None:
            yield Check("database", name, "not checked", "another version of novelsum or of DuckDB wrote it")
        elif changed:
            reason = f"changed by another program ({', '.join(changed)}); run novelsum rebuild-lineage"
            yield Check("database", name, "failed", reason)
        else:
            yield Check("database", name, "ok")
        for table in sorted(table_names(connection).intersection(TABLES)):
            yield from _rows(found, connection, table, run_ids, everything)


def _rows(
    found: _Found, connection: Connection, table: str, run_ids: Collection[str], everything: bool
) -> Iterator[Check]:
    """Yield a check for each run or output that has rows in a table: whether they are those in the run files."""
    stored = all_rows(connection, f"SELECT * FROM {table}")
    columns = [row[0] for row in connection.execute(f"DESCRIBE {table}").fetchall()]
    owner, identity = columns[0], _identity(connection, table)
    compared = [column for column in columns if column not in _NOT_COMPARED.get(table, ())]
    written = {run_id: tables.get(table, []) for run_id, tables in found.written.items()}
    rows = [row for of_run in written.values() for row in of_run]
    known = {_canonical(row, compared) for row in rows}
    present = {_canonical(row, identity) for row in stored}
    differing = {str(row[owner]) for row in stored if _canonical(row, compared) not in known}
    differing |= {str(row.get(owner)) for row in rows if _canonical(row, identity) not in present}
    # An output that several runs use has the rows of the first one.
    owners = set(found.written) if table in _OF_RUNS else {str(row.get(owner)) for row in rows}
    wanted = {str(row[owner]) for row in stored} | {str(row.get(owner)) for row in rows}
    if not everything:
        wanted &= {*run_ids, *(str(row.get(owner)) for run_id in run_ids for row in written.get(run_id, []))}
    for one in sorted(wanted):
        name, run_id = f"{table}: {one}", one if table in _OF_RUNS else None
        if one not in differing:
            yield Check("lineage rows", name, "ok", run_id=run_id)
        elif one in found.live:
            yield Check("lineage rows", name, "not checked", _LIVE, run_id)
        elif one in owners:
            reason = "the rows differ from those in the run files; run novelsum rebuild-lineage"
            yield Check("lineage rows", name, "failed", reason, run_id)
        else:
            reason = "the run file is damaged" if one in found.damaged else "no run file has these rows"
            yield Check("lineage rows", name, "not checked", reason, run_id)


def _identity(connection: Connection, table: str) -> list[str]:
    """Return the columns of a table's primary key."""
    query = (
        "SELECT constraint_column_names FROM duckdb_constraints()"
        " WHERE table_name = ? AND constraint_type = 'PRIMARY KEY' LIMIT 1"
    )
    return list(connection.execute(query, [table]).fetchone()[0])


def _canonical(row: Mapping[str, Any], columns: Iterable[str]) -> tuple[str, ...]:
    """Return values of a row that are equal if those of the database and of a run file are."""
    return tuple(_text(row.get(column)) for column in columns)


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, str) and value[:2] == "20" and "T" in value[:11]:
        try:
            return datetime.fromisoformat(value).astimezone(UTC).isoformat()
        except ValueError:
            return value
    return repr(float(value)) if isinstance(value, int | float) else str(value)


def _against_outputs(found: _Found, run_ids: Iterable[str], damaged: Collection[str]) -> Iterator[Check]:
    """Yield checks of the rows of selections and measures against the subset's manifest and the report's numbers."""
    for run_id in run_ids:
        keys = found.outputs(run_id)
        if not keys:
            continue
        rows = found.written[run_id]
        for table, place, differs in (
            ("selections", f"{output_folder('selections', keys['selection'])}/manifest.json", _other_settings),
            ("set_measures", f"{output_folder('reports', keys['report'])}/novelsum.json", _other_measures),
        ):
            if place in damaged:
                yield Check("lineage rows", f"{table} and {place}", "not checked", "the file is damaged", run_id)
                continue
            changed = differs(rows.get(table, []), read_json(found.root / place))
            reason = f"{changed} in the run file is not that of {place}" if changed else ""
            yield Check("lineage rows", f"{table} and {place}", "failed" if changed else "ok", reason, run_id)


def _other_settings(rows: list[dict[str, Any]], manifest: dict[str, Any]) -> str:
    """Return the columns of a selection that its manifest states otherwise."""
    settings = {**manifest["settings"], "options": json.dumps(manifest["settings"]["options"], sort_keys=True)}
    return ", ".join(name for row in rows for name, value in settings.items() if row.get(name) != value)


def _other_measures(rows: list[dict[str, Any]], report: dict[str, Any]) -> str:
    """Return the measures that a report states otherwise."""
    names = ("set_name", "size", "measure", "value", "low", "high")
    mine, theirs = ({tuple(row.get(name) for name in names) for row in one} for one in (rows, report["sets"]))
    return ", ".join(sorted({f"{row[2]} of {row[0]}" for row in mine ^ theirs}))


# Records and files.


def _records(found: _Found, run_ids: Collection[str], everything: bool) -> Iterator[Check]:
    """Yield a check for each record: its own SHA-256, and its copies in the run files."""
    copies: dict[str, list[Provenance]] = {}
    for records in found.recorded.values():
        for made in records.values():
            copies.setdefault(record_file(made.asset, made.output), []).append(made)
    wanted = {record_file(made.asset, made.output): run_id for run_id, made in found.records(run_ids, everything)}
    if everything:
        wanted |= dict.fromkeys([name for name in found.present if name not in wanted], "")
    for name, run_id in sorted(wanted.items()):
        outcome, reason = _record_state(found, name, copies.get(name, []))
        yield Check("records", name, outcome, reason, run_id or None)


def _record_state(found: _Found, name: str, copies: list[Provenance]) -> tuple[Outcome, str]:
    made = found.present.get(name)
    if made is None:
        return "failed", "it is missing; restore it (novelsum restore, or a backup)"
    if isinstance(made, str):
        return "failed", f"{made}; restore it (novelsum restore, or a backup)"
    if made in copies:
        return "ok", ""
    if SEAL not in read_json(found.root / name):
        return "not checked", _EARLIER
    if any(made.run_id == copy.run_id for copy in copies):
        return "failed", f"it differs from the copy in the file of run {made.run_id}"
    return "ok", ""


def _files(found: _Found, run_ids: Collection[str], everything: bool, progress: Progress) -> Iterator[Check]:
    """Yield a check for each file of the outputs, and for each file in their folders that no record names."""
    accepted: dict[str, list[StoredFile]] = {}
    made_by: dict[str, tuple[str, Provenance]] = {}
    for run_id, made in found.records(run_ids, everything):
        for name, files in stated(found.root, made).items():
            known = accepted.setdefault(name, [])
            known += [file for file in files if file not in known]
            made_by[name] = (run_id, made)
    total = sum(files[0].bytes for files in accepted.values())
    done = 0
    progress(0, total)
    with ThreadPoolExecutor(_THREADS) as threads:
        states = threads.map(lambda name: state_of(found.root / name, accepted[name]), accepted)
        for name, state in zip(accepted, states, strict=True):
            (run_id, made), size = made_by[name], accepted[name][0].bytes
            done += size
            progress(done, total)
            reason = described(made, found.root / name, state, run_id) if state else ""
            yield Check(
                made.asset, name, "failed" if state else "ok", reason, run_id, 0 if state == "missing" else size
            )
    yield from _unnamed(found, accepted, everything)


def _unnamed(found: _Found, accepted: Mapping[str, Any], everything: bool) -> Iterator[Check]:
    """Yield a check for each file or folder beside the outputs that no record names."""
    folders = {
        Path(*Path(name).parts[:2]).as_posix() for name in accepted if name.split("/")[0] in (*OUTPUTS, "vectors")
    }
    named = {name for made in found.present.values() if not isinstance(made, str) for name in made.files} | set(
        accepted
    )
    for folder in sorted(folders):
        for path in sorted((found.root / folder).rglob("*")):
            name = path.relative_to(found.root).as_posix()
            if not path.is_file() or name in named or any(part.startswith(".") for part in name.split("/")):
                continue
            if folder.startswith("vectors/"):
                yield Check("vectors", name, "not checked", "no record names it: it has vectors of no finished run")
            else:
                yield Check("unknown files", name, "failed", f"{found.root / name}: no record names it; move it away")
    for place in OUTPUTS if everything else ():
        for path in sorted((found.root / place).glob(f"{OUTPUTS[place]}=*")):
            name = path.relative_to(found.root).as_posix()
            if name not in folders:
                yield Check("unknown files", name, "not checked", "no record names this output")


def _cards(found: _Found, run_ids: Collection[str], everything: bool) -> Iterator[Check]:
    """Yield a check for each card: its key is a hash of its manifest, which has the sums of all other files."""
    for run_id, made in found.records(run_ids, everything):
        if made.asset != "data_card":
            continue
        folder = found.root / output_folder("cards", made.output)
        name = f"{output_folder('cards', made.output)}/manifest.json"
        try:
            is_own = content_key(file_hash(folder / "manifest.json")) == made.output
            sums = read_json(folder / "manifest.json")["sha256"]
            wrong = [one for one, sha256 in sums.items() if file_hash(folder / one) != sha256]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            is_own, wrong = False, [_first_line(error)]
        reason = "" if is_own and not wrong else f"its content is not that of its key ({', '.join(wrong) or name})"
        yield Check("data cards", name, "failed" if reason else "ok", reason, run_id)


def _artifacts(root: Path) -> Iterator[Check]:
    """Yield a check for each newest artifact."""
    for path in sorted(root.glob("assets/**/*.json")):
        name = path.relative_to(root).as_posix()
        try:
            values = read_json(path)
            Artifact.model_validate({"key": unsealed(values)["key"]})
            outcome: Outcome = "ok" if SEAL in values else "not checked"
            yield Check("newest artifacts", name, outcome, "" if outcome == "ok" else _EARLIER)
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"{_first_line(error)}; materialise {path.stem} again (novelsum run)"
            yield Check("newest artifacts", name, "failed", reason)


def _unhashed(root: Path) -> Iterator[Check]:
    """Yield what has no hash, so that nothing is silently left out."""
    for name, why in ((CHECKS, "verdicts of checks have no recorded hash"), ("dagster", "Dagster's own history")):
        if (root / name).is_dir():
            yield Check("others", f"{name}/", "not checked", why)


# Views and signatures.


def _views(found: _Found, run_ids: Iterable[str], wrong: Collection[str]) -> Iterator[Check]:
    """Yield a check for each view and output behind it: whether it shows the rows of the file, and no others."""
    keys = {key for run_id in run_ids for key in found.outputs(run_id).values()}
    with found.store.as_it_is() as connection:
        if connection is None:
            return
        for view, (pattern, _) in VIEWS.items():
            for path in sorted(found.root.glob(pattern)):
                key, place = path.parent.name.partition("=")[2], path.relative_to(found.root).as_posix()
                if key not in keys:
                    continue
                if place in wrong:
                    yield Check("views", f"{view}: {place}", "not checked", "the file is damaged")
                    continue
                outcome, reason = _view_state(connection, view, key, path)
                yield Check("views", f"{view}: {place}", outcome, reason)


def _view_state(connection: Connection, view: str, key: str, path: Path) -> tuple[Outcome, str]:
    import duckdb

    rebuild = "run novelsum rebuild-lineage"
    try:
        shows = _shows(connection, view, key, path)
    except (duckdb.CatalogException, duckdb.BinderException) as error:
        return "failed", f"it cannot be read ({_first_line(error)}); {rebuild}"
    except duckdb.Error:
        return "not checked", "a file of another run behind it is damaged"
    return ("ok", "") if shows else ("failed", f"it shows other rows than the file; {rebuild}")


def _shows(connection: Connection, view: str, key: str, path: Path) -> bool:
    """Return whether a view shows the rows of a file for its key."""
    kinds = {row[0]: row[1] for row in connection.execute(f"DESCRIBE {quoted(view)}").fetchall()}
    source = "read_parquet(?, hive_partitioning = false)"
    columns = [row[0] for row in connection.execute(f"DESCRIBE SELECT * FROM {source}", [str(path)]).fetchall()]
    if not set(columns) <= set(kinds):
        return False
    cast = ", ".join(f"{quoted(name)}::{kinds[name]} AS {quoted(name)}" for name in columns)

    def total(rows: str, value: str) -> Any:
        query = f"SELECT count(*), sum(hash(one)) FROM (SELECT {cast} FROM {rows}) AS one"
        return connection.execute(query, [value]).fetchone()

    return bool(total(f"{quoted(view)} WHERE {quoted(_KEY_OF_VIEW[view])} = ?", key) == total(source, str(path)))


def _signatures(
    found: _Found, run_ids: Collection[str], everything: bool, allowed_signers: Path | None
) -> Iterator[Check]:
    keys = {key for run_id in run_ids for key in found.outputs(run_id).values()}
    keys |= {made.output for _, made in found.records(run_ids, everything) if made.asset == "data_card"}
    signed: list[Signed] = [one for one in signatures_of(found.root) if everything or one.key in keys]
    for one in signed:
        name = one.signature.relative_to(found.root).as_posix()
        if allowed_signers is None:
            yield Check("signatures", name, "not checked", "name the keys that may sign: --allowed-signers FILE")
            continue
        reason = verified_signature(one, allowed_signers)
        yield Check("signatures", name, "failed" if reason else "ok", reason)
