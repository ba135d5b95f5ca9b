"""The commands that query the lineage: `novelsum why`, `diff`, `reproduce` and `rebuild-lineage`.

Belongs here: their arguments, text output and JSON. Does not: the answers (`novelsum_dagster.audit`).
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Annotated, Any

import typer

from novelsum_dagster.cli.terminal import AsJson, SettingsFile, new_reporter, print_json, print_table, say, settings_in
from novelsum_dagster.common.errors import InputError

_Run = Annotated[str | None, typer.Option("--run", "-r", help="Run, or the beginning of its id. Default: the newest.")]
_SHOWN = 10


def why(
    sample: Annotated[str, typer.Argument(help="Id or its beginning, FILE:LINE, FILE#RECORD, or a piece of the text.")],
    run: _Run = None,
    smallest_k: Annotated[
        bool, typer.Option("--smallest-k", help="Extend the selection until it picks the sample; 4 k at most.")
    ] = False,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Explain why a sample was picked or left out.

    For a picked sample: rank, score, the runner-up and its margin, the nearest earlier picks, the samples whose nearest
    pick it is, and its source. For one left out: where it came closest, its nearest pick, what excluded it, and what
    would let it in.

    Example: [bold]novelsum why 4f0c91[/], [bold]novelsum why pool.jsonl:17[/], [bold]novelsum why "binary search"[/]
    """
    from novelsum_dagster.audit.explain import explain
    from novelsum_dagster.audit.smallest_k import with_smallest_k
    from novelsum_dagster.audit.verified import EXPLAINED, verified_run
    from novelsum_dagster.report.tables import shortened
    from novelsum_dagster.workspace import Workspace

    workspace = Workspace(settings_in(settings))
    with workspace.lineage.reading() as connection:
        found = explain(connection, workspace.root, verified_run(connection, workspace.root, run, EXPLAINED), sample)
        if smallest_k:
            with new_reporter().step("extending the selection") as progress:
                found = with_smallest_k(connection, workspace.root, found, progress)
    if as_json:
        answer = {
            "run": found.run.run_id,
            "outcome": found.outcome,
            "sample": found.sample,
            **found.facts,
            "words": list(found.words),
        }
        print_json(answer)
        return
    if "id" in found.sample:
        print(f"{found.sample['id']}\n{shortened(' '.join(found.sample['text'].split()), 300)}\n")
    for sentence in found.words:
        print(sentence)


def diff(
    run_a: Annotated[str, typer.Argument(help="Run, or the beginning of its id.")],
    run_b: Annotated[str, typer.Argument(help="Run that is compared with it.")],
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Compare the subsets of two runs: which samples entered, left and stayed, and why.

    Why is found by selecting again with one of the changed inputs at a time, where that takes about a minute at most.

    Example: [bold]novelsum diff 614f8acc 2dd77a51[/]
    """
    from novelsum_dagster.audit.difference import difference
    from novelsum_dagster.audit.verified import COMPARED, REPLAYED, verified_run
    from novelsum_dagster.workspace import Workspace

    workspace = Workspace(settings_in(settings))
    with workspace.lineage.reading() as connection:
        a, b = (verified_run(connection, workspace.root, run, COMPARED, REPLAYED) for run in (run_a, run_b))
        with new_reporter().step("replaying selections") as progress:
            found = difference(connection, workspace.root, a, b, progress=progress)
    if as_json:
        answer = {
            "run_a": found.a.run_id,
            "run_b": found.b.run_id,
            "entered": [asdict(change) for change in found.entered],
            "left": [asdict(change) for change in found.left],
            "stayed": found.stayed,
            "settings": {key: {"a": a, "b": b} for key, (a, b) in found.settings.items()},
            "inputs": [{"code": one.code, **one.facts} for one in found.inputs],
            **found.data,
            "replayed": found.replayed,
            "not_replayed": found.not_replayed,
            "same_code": found.same_code,
            "same_model": found.same_model,
            "measures": found.measures,
        }
        print_json(answer)
        return
    _print_difference(found)


def reproduce(
    run: Annotated[str | None, typer.Argument(help="Run, or the beginning of its id. Default: the newest.")] = None,
    embed_again: Annotated[
        bool, typer.Option("--embed-again", help="Recompute the vectors too, instead of using the stored ones.")
    ] = False,
    settings: SettingsFile = None,
    as_json: AsJson = False,
) -> None:
    """Rebuild a run's subset, density and novelty from its record, and compare them byte for byte.

    Uses the run's settings, sources and seed; stored files that were deleted do no harm. If a source has changed since,
    or a stored file is damaged, it is named and nothing is rebuilt. Exit code 1: what was rebuilt differs.

    Example: [bold]novelsum reproduce 614f8acc[/]
    """
    from novelsum_dagster.artifacts.outputs import fetch_output
    from novelsum_dagster.audit.reproduce import records_of
    from novelsum_dagster.audit.reproduce import reproduce as make_again
    from novelsum_dagster.lineage.runs import find_run
    from novelsum_dagster.selection.extension import EXTENDS
    from novelsum_dagster.workspace import Workspace

    chosen = settings_in(settings)
    workspace = Workspace(chosen)
    with workspace.lineage.reading() as connection:
        found = find_run(connection, run, without_data=True)
        records = records_of(connection, found)
    for name, record in records.items():
        with suppress(InputError):  # What is gone on S3, too, is rebuilt.
            fetch_output(workspace.mirror, name, record.output)
    if EXTENDS in found.options:
        fetch_output(workspace.mirror, "selected_subset", found.options[EXTENDS])
    made = make_again(records, found, workspace.root, chosen.base, new_reporter(), embed_again)
    if as_json:
        answer = {
            "run": found.run_id,
            "equal": made.is_equal,
            "checked": made.checked,
            "gone": made.gone,
            "outputs": {name: {"recorded": then, "made": now} for name, (then, now) in made.outputs.items()},
            "files": made.files,
            "not_checked": made.not_checked,
            "embedded_again": made.embedded_again,
            "differences": list(made.differences),
        }
        print_json(answer)
    else:
        _print_reproduction(made)
    if not made.is_equal:
        raise typer.Exit(1)


def rebuild_lineage(settings: SettingsFile = None) -> None:
    """Rebuild the lineage database from the files that every run wrote beside it; a damaged one is set aside."""
    from novelsum_dagster.artifacts.outputs import exchange_runs
    from novelsum_dagster.lineage.models import build
    from novelsum_dagster.workspace import Workspace

    workspace = Workspace(settings_in(settings))
    store = workspace.lineage
    exchange_runs(workspace.mirror)
    runs = store.rebuild()
    build(store)
    say(f"{runs:,} runs are in {store.path} again")


def _print_difference(found: Any) -> None:
    from novelsum_dagster.audit.cause_words import difference_lines

    moved = f"{len(found.entered):,} samples entered, {len(found.left):,} left, {found.stayed:,} stayed"
    print(f"{found.b.short} against {found.a.short}: {moved}.\n")
    for line in difference_lines(found):
        print(f"  {line}")
    _print_changes("entered", found.entered)
    _print_changes("left", found.left)
    if found.not_replayed:
        print(f"\nNot all causes were replayed: {found.not_replayed}.")
    if found.measures:
        _print_measures(found)


def _print_reproduction(made: Any) -> None:
    rows = [
        (name, then[:16], now[:16], "equal" if then == now else "differs") for name, (then, now) in made.outputs.items()
    ]
    verdicts = {True: "equal, byte for byte", False: "differs", None: "missing"}
    rows += [(name, "", "", verdicts[equal]) for name, equal in made.files.items()]
    columns = ("output", "recorded", "rebuilt", "")
    print_table(f"Run {made.run.short}, rebuilt", columns, rows, text=columns)
    print(f"Checked before: {_listed(made.checked)}.")
    if made.gone:
        print(f"Missing here, so compared by their recorded hashes alone: {_listed(made.gone)}.")
    kept = "The stored vectors were used; --embed-again recomputes them too."
    print("The vectors were recomputed." if made.embedded_again else kept)
    for name, reason in made.not_checked.items():
        print(f"Not compared: {name} ({reason}).")
    for line in made.differences:
        print(f"Since then: {line}.")
    if made.is_equal:
        print("The subset is the same, byte for byte.")
    else:
        differing = [name for name, (then, now) in made.outputs.items() if then != now]
        differing += [name for name, equal in made.files.items() if not equal]
        print(f"What was rebuilt differs: {', '.join(differing)}.")


def _listed(counts: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _print_changes(name: str, changes: Sequence[Any]) -> None:
    if not changes:
        return
    print(f"\n{name}:")
    for cause, count in Counter(change.cause for change in changes).most_common():
        print(f"  {count:,}: {cause}")
    columns = ("rank", "id", "source")
    rows = [(f"{change.rank:,}", change.id, change.source) for change in changes[:_SHOWN]]
    print_table(None, columns, rows, text=columns)
    if len(changes) > _SHOWN:
        print(f"and {len(changes) - _SHOWN:,} more (--json has all)")


def _print_measures(found: Any) -> None:
    rows = [(row["set_name"], row["measure"], f"{row['a']:,.4f}", f"{row['b']:,.4f}") for row in found.measures]
    print_table("Measures", ("set", "measure", found.a.short, found.b.short), rows, text=("set", "measure"))
    if any(row["size_a"] != row["size_b"] for row in found.measures):
        print("The sets differ in size, so their values cannot be compared.")
