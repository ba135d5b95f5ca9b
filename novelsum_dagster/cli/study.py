"""The commands `novelsum study ...`, which evaluate the measures.

Belongs here: arguments, tables and JSON of the studies. Does not: the studies (`study`).
"""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from novelsum_dagster.cli.terminal import (
    AsJson,
    Seed,
    SettingsFile,
    folder_to_write,
    new_app,
    new_reporter,
    require_outputs,
    say,
    settings_in,
)
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.settings import Settings, settings_path

study = new_app("Evaluate the measures: on simulated selections, and against the performance of models.")


@study.command()
def simulate(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write tables and pictures to this folder.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Number of draws of every pool.")] = 5,
    seed: Seed = 42,
    as_json: AsJson = False,
) -> None:
    """Rank simulated selections whose order is obvious, and count how often each measure agrees.

    Pools in 2 and 64 dimensions: uniform, clustered and of varying density. Selections: spread out, in one cluster,
    of duplicates, of outliers, of dense areas only.

    Example: [bold]novelsum study simulate --output simulation[/]
    """
    from novelsum_dagster.study.simulate import LEFT_OUT, write_simulation
    from novelsum_dagster.study.simulate import simulate as simulated

    if output is not None:
        folder_to_write("--output", output)
    with new_reporter().step("simulating") as progress:
        found = simulated(seed, repeats, progress)
    if output is not None:
        write_simulation(output, found)
    rows = found.scores.to_pylist()
    if as_json:
        print(json.dumps({"scores": rows, "seed": seed, "repeats": repeats, "left_out": LEFT_OUT}, indent=2))
        return
    _print_simulation(rows)
    say(LEFT_OUT)
    _say_where(output)


@study.command()
def correlate(
    settings: SettingsFile = None,
    performance: Annotated[
        Path | None,
        typer.Option(help="CSV (set, performance) with your own figures; else a small model is trained on each set."),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Instead of a study: CSV (strategy, performance, and one column per measure) to correlate."),
    ] = None,
    list_sets: Annotated[bool, typer.Option("--list-sets", help="Only print the names of the study's sets.")] = False,
    sets: Annotated[
        Path | None,
        typer.Option("--write-sets", help="Only write the records of each set to this folder, as NAME.jsonl."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write tables and pictures to this folder.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(help="Folder for the results as CSV (study page). Default: study/tables in the storage folder."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Correlate all measures with performance, over sets that every strategy selected from a pool.

    The pool is the one that [bold]novelsum run[/] last read and embedded; sets, training and the values of K, beta and
    alpha are settings (study). Finished work is kept: an interrupted study resumes.

    Example: [bold]novelsum study correlate --settings curation.yaml[/]
    """
    from novelsum_dagster.study.correlate import outcome_json, read_scatter, write_outcome

    if output is not None:
        folder_to_write("--output", output)
    if table is not None:
        if performance is not None or list_sets:
            raise InputError("--table has its own performance and sets; omit --performance and --list-sets")
        outcome, kept = read_scatter(table), None
    else:
        chosen = _with_performance(settings_in(settings), performance)
        if list_sets:
            return _print_set_names(chosen, as_json)
        if sets is not None:
            return _write_sets(chosen, folder_to_write("--write-sets", sets))
        outcome, kept = _studied(chosen, folder_to_write("--export", export or chosen.storage_path / "study/tables"))
        _say_what_is_missing(outcome)
    if output is not None:
        write_outcome(outcome, output)
    if as_json:
        print(json.dumps(outcome_json(outcome), indent=2))
        return
    _print_outcome(outcome)
    say(f"Performance: {outcome.performance}. Above 0: more diverse sets perform better.")
    _say_where(output or kept)


@study.command()
def page(
    folders: Annotated[list[Path], typer.Argument(help="Folders written by correlate --export, one per pool.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, as study.html.")],
    as_json: AsJson = False,
) -> None:
    """Write the findings of one or several studies as one HTML page, with its numbers as files.

    Which measures predict performance, with and without length and near-duplicates held fixed; which selection beats
    random; and which effects the study could have detected.

    Example: [bold]novelsum study page tables -o study.html[/]
    """
    from novelsum_dagster.study.findings import findings
    from novelsum_dagster.study.page import summary, write_study_page
    from novelsum_dagster.study.statistics import DRAWS
    from novelsum_dagster.study.tables import read_tables

    if output.is_dir():
        raise InputError(f"--output: {output} is a folder; name a file")
    require_outputs([output], [])
    tables = read_tables(folders)
    with new_reporter().step("bootstrap") as progress:
        found = findings(tables, DRAWS, progress)
    write_study_page(found, output)
    if as_json:
        print(json.dumps({**found.records(), "summary": summary(found)}, indent=2))
        return
    for sentence in summary(found):
        print(sentence)
    say(f"Page: {output}")


def _with_performance(settings: Settings, performance: Path | None) -> Settings:
    if performance is None:
        return settings
    changed = settings.study.model_copy(update={"performance": str(performance.expanduser().absolute())})
    return settings.model_copy(update={"study": changed})


def _studied(settings: Settings, export: Path) -> tuple[Any, Path]:
    from novelsum_dagster.study.run import correlate as correlated
    from novelsum_dagster.study.tables import tables_of, write_tables

    name = settings.study.name or settings_path().stem

    def keep(found: Any) -> None:
        write_tables(tables_of(found, settings, name), export)

    kept, outcome = correlated(settings.storage_path, *_pool(settings), settings, new_reporter(), keep)
    return outcome, settings.storage_path / kept.folder


def _write_sets(settings: Settings, folder: Path) -> None:
    from novelsum_dagster.study.run import write_sets

    count = write_sets(settings.storage_path, *_pool(settings), settings, folder, new_reporter())
    say(f"{count:,} sets: {folder}")


def _pool(settings: Settings) -> tuple[Any, Any]:
    """Return the newest pool and its vectors."""
    from novelsum_dagster.artifacts.newest import newest_or_none, read_newest
    from novelsum_dagster.embedding.store import VectorSet
    from novelsum_dagster.pool.snapshot import PoolSnapshot

    root = settings.storage_path
    try:
        # Storage of an earlier release has only the pool as read.
        distinct = newest_or_none(root, "distinct_pool", PoolSnapshot)
        pool = distinct or read_newest(root, "raw_pool", PoolSnapshot)
        return pool, read_newest(root, "embeddings", VectorSet)
    except InputError as error:
        raise InputError(f"{error}: novelsum run") from None


def _say_what_is_missing(outcome: Any) -> None:
    from novelsum_dagster.diversity.measures import MEASURES

    for key, known in MEASURES.items():
        lacking = outcome.sets[key].null_count if key in outcome.measures else len(outcome.sets)
        if lacking and known.family == "words":
            say(f"{known.label} is missing in {lacking} sets: their texts have too few words (measures.ttr_tokens)")


def _print_set_names(settings: Settings, as_json: bool) -> None:
    from novelsum_dagster.study.sets import recipes

    planned = recipes(settings.study)
    if as_json:
        print(json.dumps([recipe.model_dump() for recipe in planned.values()], indent=2))
        return
    for name in planned:
        print(name)


def _print_simulation(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from novelsum_dagster.study.simulate import ALL

    pools = list(dict.fromkeys((row["pool"], row["dimensions"]) for row in rows if row["pool"] != ALL))
    # Full names would need more than 80 columns.
    names = dict.fromkeys(pool for pool, _ in pools)
    table = Table(
        title="Comparisons ranked as expected",
        caption="pools: " + ", ".join(f"{pool[0].upper()} {pool}" for pool in names),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    table.add_column("all", justify="right")
    for pool, dimensions in pools:
        table.add_column(f"{dimensions}-D {pool[0].upper()}", justify="right")
    for row in sorted(rows, key=lambda row: -row["share"]):
        if row["pool"] == ALL:
            of = {(one["pool"], one["dimensions"]): one["share"] for one in rows if one["measure"] == row["measure"]}
            table.add_row(row["label"], f"{row['share']:.0%}", *(f"{of[pool]:.0%}" for pool in pools))
    Console().print(table)


def _print_outcome(outcome: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    from novelsum_dagster.study.correlation import ALL_SETS, METHODS, SELECTING

    found = {(one.measure, one.group, one.method): one for one in outcome.correlations}
    overall = {name: found[name, ALL_SETS, "pearson"].r for name in outcome.measures}
    ranked = sorted(overall, key=lambda name: -2.0 if overall[name] is None else overall[name], reverse=True)
    chosen = found[ranked[0], SELECTING, "pearson"].sets
    table = Table(
        title=f"Correlation with performance, {len(outcome.sets)} sets",
        caption=f"selected: Pearson over the {chosen} sets of selection strategies, without random and duplicate ones",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("measure", no_wrap=True)
    for name in ("Pearson", "95 % interval", "Spearman", "Kendall", "selected"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ranked:
        everywhere = [found[name, ALL_SETS, method] for method in METHODS]
        among = found[name, SELECTING, "pearson"]
        low, high = everywhere[0].low, everywhere[0].high
        interval = "" if low is None else f"{low:.2f} to {high:.2f}"
        table.add_row(
            outcome.measures[name], _r(everywhere[0]), interval, _r(everywhere[1]), _r(everywhere[2]), _r(among)
        )
    Console().print(table)
    if outcome.grid and outcome.grid[0]["pearson"] is not None:
        best = outcome.grid[0]
        print(
            f"NovelSum agrees best at K = {best['neighbors']}, beta = {best['density_power']:g},"
            f" alpha = {best['proximity_power']:g}: Pearson {best['pearson']:.3f}, Spearman {best['spearman']:.3f}"
        )


def _r(one: Any) -> str:
    return "none" if one.r is None else f"{one.r:.3f}"


def _say_where(folder: Path | None) -> None:
    if folder is not None:
        say(f"Tables and pictures: {folder}")
