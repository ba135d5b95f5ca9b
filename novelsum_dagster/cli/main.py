"""The command `novelsum`: the command-line interface.

Belongs here: arguments, tables, JSON, exit codes. Does not: the work (`oneshot`, `definitions`), the audit's and
the studies' commands (`audit`, `study`).

Results go to standard output, everything else to standard error. Exit codes: 0 done; 1 the pipeline failed; 2 bad
input, settings or arguments; 130 interrupted.
"""

import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import typer

from novelsum_dagster.cli.audit import diff, rebuild_lineage, reproduce, why
from novelsum_dagster.cli.explore import explore, page_beside
from novelsum_dagster.cli.files import FileOptions, NearOptions, export, files_read, inspect, say_cut, say_read
from novelsum_dagster.cli.gc import gc
from novelsum_dagster.cli.plan import plan
from novelsum_dagster.cli.restore import restore
from novelsum_dagster.cli.study import study
from novelsum_dagster.cli.terminal import (
    AsJson,
    SettingsFile,
    folder_to_write,
    new_app,
    new_reporter,
    print_json,
    print_table,
    require_free_port,
    require_outputs,
    run_group,
    say,
    settings_in,
    validated,
    with_shared_options,
)
from novelsum_dagster.cli.verify import sign, verify
from novelsum_dagster.common.errors import InputError, disk_full, is_disk_full
from novelsum_dagster.pool.formats import ENDINGS
from novelsum_dagster.settings import Embedding, NovelSum, Selection, Settings

if TYPE_CHECKING:
    from novelsum_dagster.diversity.measures import Comparison, SetMeasures, Value
    from novelsum_dagster.pool.export import ChosenRecord, Nested
    from novelsum_dagster.pool.snapshot import PoolSnapshot
    from novelsum_dagster.report.explanation import Compared

app = new_app(
    "How diverse is an instruction-tuning dataset, and which subset is most diverse?\n\n"
    "[bold]measure[/] and [bold]select[/] work directly on files. [bold]run[/] curates a pool by a settings file, with"
    " checks, lineage and reports; [bold]ui[/] shows it in the Dagster UI; [bold]study[/] evaluates the measures."
)
app.add_typer(study, name="study")


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        print(version("novelsum-dagster"))
        raise typer.Exit


@app.callback()
def _common(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


_NEIGHBORS = "K: neighbours in the density factor."
_DENSITY_POWER = "beta: weight of the density factor; 0 disables it."
_PROXIMITY_POWER = "alpha: weight of near samples."


@app.command()
def run(settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """Curate a pool as the settings file specifies: read, embed, measure, select, check and record it.

    An interrupted run resumes at the last shard of vectors; a second run embeds only new samples.

    Example: [bold]novelsum run --settings curation.yaml[/]
    """
    chosen = settings_in(settings)
    home, run_id = _prepare_home(chosen), str(uuid4())
    from novelsum_dagster.definitions import CURATE_JOB, build_defs
    from novelsum_dagster.defs.dead_runs import open_instance
    from novelsum_dagster.engine.engine import engine_of
    from novelsum_dagster.workspace import Workspace

    # Fail before any work on what a step would refuse: storage in use or unreachable, a missing device.
    Workspace(chosen).hold(run_id)
    engine_of(chosen).device(chosen.device)

    job = build_defs(chosen, new_reporter()).resolve_job_def(CURATE_JOB)
    with open_instance(Workspace(chosen)) as instance:
        result = job.execute_in_process(
            instance=instance,
            run_id=run_id,
            raise_on_error=False,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    _say_checks(result)
    if _was_interrupted(result):
        say("novelsum: interrupted; finished vectors are kept")
        raise typer.Exit(130)
    if not result.success:
        _say_failures(result)
        raise typer.Exit(1)
    summary = _summary(chosen)
    if as_json:
        print_json(summary)
        return
    _print_pool(summary["pool"])
    density = _reference("the pool", summary["pool"]["samples"], summary["pool"]["near_duplicates_dropped"])
    intervals = "Intervals are 95 % bootstrap; for the pool sample, the range of ten random draws."
    _print_sets(summary["novelsum"], intervals, density)
    if worse := summary["less_diverse"]:
        print(f"{worse}: see the report")
    for name in ("subset", "report", "lineage"):
        print(f"{name + ':':<9} {summary[name]}")
    print(f"Dagster:  {home}")
    if changed := _what_changed(chosen, result.run_id):
        print(f"\n{changed}")
    if cut := _what_was_cut(chosen):
        say(cut)
    option = f" --settings {settings}" if settings else ""
    print(f"\nRun {result.run_id}. Why a sample was picked, or not: novelsum why ID{option}")
    print(f"Open the Dagster UI: novelsum ui{option}")


@app.command()
@with_shared_options
def measure(
    *,
    sets: Annotated[list[Path], typer.Argument(help=f"Files, one set each: {ENDINGS}.")],
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", "-r", help="The pool that defines density; repeatable."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Also write tables to this folder: measures, each sample's novelty."),
    ] = None,
    neighbors: Annotated[list[int] | None, typer.Option(min=1, help=_NEIGHBORS + " Repeatable. [default: 10]")] = None,
    density_power: Annotated[
        list[float] | None, typer.Option(min=0, help=_DENSITY_POWER + " Repeatable. [default: 0.5]")
    ] = None,
    proximity_power: Annotated[
        list[float] | None, typer.Option(min=0, help=_PROXIMITY_POWER + " Repeatable. [default: 1.0]")
    ] = None,
    neighbor_policy: Annotated[str, typer.Option(help="published, or self: drop only an equal point.")] = "published",
    self_distance: Annotated[str, typer.Option(help="included (published), or excluded from each row.")] = "included",
    density_side: Annotated[str, typer.Option(help="row (published), or column: the other sample's density.")] = "row",
    aggregate: Annotated[str, typer.Option(help="mean (published), or sum.")] = "mean",
    near: NearOptions,
    options: FileOptions,
    as_json: AsJson = False,
) -> None:
    """Measure the diversity of one or more sets, at equal size: NovelSum and the other measures.

    Values depend on the number of samples, so larger sets are sampled down to the smallest. Each repeated sample counts
    every time it occurs. Without --reference, density comes from all sets together.

    Give several values of K, beta or alpha to get NovelSum at every combination; this takes hardly longer than one.

    Example: [bold]novelsum measure subset.jsonl random.jsonl --reference pool.parquet[/]
    """
    from novelsum_dagster.cli.oneshot import compare, embedded_files, transformed, untransformed
    from novelsum_dagster.diversity.novelsum import Grid
    from novelsum_dagster.pool.rejects import RejectsFile
    from novelsum_dagster.report.comparison import WRITTEN, comparison_json, write_comparison

    grid = Grid(tuple(neighbors or [10]), tuple(density_power or [0.5]), tuple(proximity_power or [1.0]))
    powers = validated(
        NovelSum,
        neighbors=grid.neighbors[0],
        density_power=grid.density_powers[0],
        proximity_power=grid.proximity_powers[0],
        neighbor_policy=neighbor_policy,
        self_distance=self_distance,
        density_side=density_side,
        aggregate=aggregate,
    )
    embedding, reporter = options.embedding(), new_reporter()
    if options.vectors is not None and (len(sets) > 1 or reference):
        raise InputError("--vectors takes one set of files: measure a single set, without --reference")
    everything = options.pool([*sets, *sorted(reference or [])], near.rule())
    tables = [] if output is None else [folder_to_write("--output", output) / name for name in WRITTEN]
    require_outputs([*tables, options.rejects], files_read(everything, embedding, Path.cwd()))
    left_out = RejectsFile(options.rejects)
    samples, ids, content = {}, {}, {}
    for at, path in enumerate(sets):
        name = str(path)
        if name in samples:
            raise InputError(f"{path}: given twice; name each set once")
        own = everything.model_copy(update={"sources": everything.sources[at : at + 1]})
        with embedded_files(own, untransformed(embedding), reporter, options.device, options.rejects) as files:
            say_read(files.snapshot, files.root, options.rejects, duplicates=False)
            say_cut(files.cut, embedding)
            left_out.take(files.snapshot, files.root)
            content[name] = files.snapshot.key
            samples[name], ids[name] = files.records()
    pool = None
    if reference:
        own = everything.model_copy(update={"sources": everything.sources[len(sets) :]})
        with embedded_files(own, untransformed(embedding), reporter, options.device, options.rejects) as files:
            say_read(files.snapshot, files.root, options.rejects)
            left_out.take(files.snapshot, files.root)
            pool, content["reference"] = files.vectors, files.snapshot.key
    samples, pool = transformed(samples, pool, embedding)
    _say_transformed(next(iter(samples.values())).vectors.shape[1], embedding)
    comparison = compare(samples, pool, powers, grid, options.seed, options.device, reporter)
    where = [str(path) for path in reference] if reference else "all sets together"
    size = len(pool) if pool is not None else sum(len(one.vectors) for one in samples.values())
    density = _reference(", ".join(where) if reference else str(where), size, everything.near_duplicates.drop)
    settings = {**powers.model_dump(), **asdict(grid), "seed": options.seed, "model": options.model}
    settings |= {"reference": where, "reference_samples": size}
    if options.whiten or options.reduce is not None:
        settings |= {"whiten": options.whiten, "reduce": options.reduce}
    if output is not None:
        write_comparison(comparison, ids, settings, content, output)
        say(f"Tables: {output}")
    if as_json:
        print_json(comparison_json(comparison, settings, content))
        return
    _print_measures(comparison)
    print(density)
    for note in comparison.notes:
        say(note)


@app.command()
@with_shared_options
def select(
    *,
    pool: Annotated[list[Path], typer.Argument(help=f"Files to choose from: {ENDINGS}.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write them: .jsonl, .json or .parquet; - for stdout.")
    ],
    k: Annotated[int | None, typer.Option("-k", min=1, help="How many samples to choose.")] = None,
    token_budget: Annotated[
        int | None, typer.Option(min=1, help="Instead of -k: the most tokens that the subset may have in total.")
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(help="novelselect, random, farthest, kmeans, kcenter, qdit, repr_filter, gist or duplicate."),
    ] = "novelselect",
    quality: Annotated[
        str | None, typer.Option(help="Field of the records with a quality above 0, e.g. meta.score.")
    ] = None,
    density_side: Annotated[
        str,
        typer.Option(
            help="Whose density novelselect uses: both (published code); column: the picks' (the paper's"
            " equation); row: the candidate's; or objective: the increase of NovelSum."
        ),
    ] = "both",
    picks: Annotated[
        Path | None, typer.Option(help="Also write why each was picked, in pick order, to this .parquet file.")
    ] = None,
    near: NearOptions,
    nested: Annotated[
        str, typer.Option(help="Columns that Parquet cannot store unchanged: refuse, or json (stored as JSON text).")
    ] = "refuse",
    neighbors: Annotated[int, typer.Option(min=1, help=_NEIGHBORS)] = 10,
    density_power: Annotated[float, typer.Option(min=0, help=_DENSITY_POWER)] = 0.5,
    proximity_power: Annotated[float, typer.Option(min=0, help=_PROXIMITY_POWER)] = 1.0,
    options: FileOptions,
    as_json: AsJson = False,
) -> None:
    """Select a diverse subset of k samples, and write its records unchanged, in pick order.

    NovelSelect favours dense regions, so near-duplicates crowd the subset: drop them if the pool has many.

    Example: [bold]novelsum select pool.jsonl more.parquet -k 1000 -o subset.jsonl[/]
    """
    from novelsum_dagster.cli.oneshot import beside_random, choose, embedded_files
    from novelsum_dagster.common.files import write_table
    from novelsum_dagster.pool.export import output_writer, require_writable
    from novelsum_dagster.pool.rejects import RejectsFile
    from novelsum_dagster.pool.snapshot import PoolSnapshot
    from novelsum_dagster.report.explanation import less_diverse, names_of
    from novelsum_dagster.selection.chosen import require_possible
    from novelsum_dagster.selection.subset import describe

    chosen = validated(
        Selection,
        strategy=strategy,
        k=k,
        token_budget=token_budget,
        seed=options.seed,
        quality=quality,
        density_side=density_side,
    )
    powers = validated(NovelSum, neighbors=neighbors, density_power=density_power, proximity_power=proximity_power)
    to_stdout = str(output) == "-"
    if to_stdout and as_json:
        raise InputError("--json prints to standard output; name a file with --output")
    if not to_stdout:
        output_writer(output)
    left_out = RejectsFile(options.rejects)
    if picks is not None and picks.suffix != ".parquet":
        raise InputError(f"--picks: {picks} must end in .parquet")
    reporter = new_reporter()
    read, embedding = options.pool(pool, near.rule()), options.embedding()
    written = [None if to_stdout else output, picks, options.rejects]
    require_outputs(written, files_read(read, embedding, Path.cwd()))
    how = _nested(nested)

    def require(snapshot: PoolSnapshot, root: Path) -> None:
        require_possible(snapshot, root, chosen)
        if not to_stdout:
            require_writable(snapshot, root, output, how)

    with embedded_files(read, embedding, reporter, options.device, options.rejects, require) as files:
        say_read(files.snapshot, files.root, options.rejects)
        say_cut(files.cut, embedding)
        _say_transformed(files.vectors.shape[1], embedding)
        left_out.take(files.snapshot, files.root)
        choice = choose(files, chosen, powers, reporter, options.device)
        table = choice.table
        _write_chosen(choice.records, None if to_stdout else output, how)
        if picks is not None:
            write_table(table, picks)
        compared = beside_random(files, choice, chosen, powers, reporter, options.device)
    counts = {
        "read": files.snapshot.read,
        "pool": files.snapshot.kept,
        "selected": len(table),
        "tokens": sum(table["tokens"].to_pylist()),
    }
    if as_json:
        settings = {**describe(chosen), **powers.model_dump()}
        beside = {"compared": [one.record() for one in compared], **choice.reached}
        print_json({**counts, "output": str(output), **settings, **beside})
    else:
        say(f"{len(table):,} of {files.snapshot.kept:,} samples written" + ("" if to_stdout else f" to {output}"))
        if choice.reached.get("part_of_bound"):
            reached = choice.reached
            say(
                f"NovelSum of the subset: {reached['novelsum']:.4f}, {reached['part_of_bound']:.0%} of"
                f" {reached['upper_bound']:.4f}, an upper bound for subsets of this size."
            )
        _print_beside(compared, len(table), files.snapshot, stderr=to_stdout)
        if worse := less_diverse(compared):
            say(f"{worse}; measures compared: {names_of(compared)}.")


def _print_beside(compared: "Sequence[Compared]", size: int, pool: "PoolSnapshot", stderr: bool) -> None:
    """Print NovelSum of a random and of the selected subset, each of `size` samples, if it was measured."""
    for one in compared:
        if one.measure == "novelsum":
            rows = [
                {"set": name, "samples": size, "novelsum": found.value, "low": found.low, "high": found.high}
                for name, found in (("random", one.random), ("selected", one.selected))
            ]
            density = _reference("the pool", pool.kept, pool.near_duplicates_dropped)
            _print_sets(rows, "Intervals are 95 % bootstrap.", density, stderr=stderr)


def _say_transformed(dimension: int, embedding: Embedding) -> None:
    if embedding.whiten or embedding.reduce is not None:
        say(f"PCA has {'whitened' if embedding.whiten else 'reduced'} the vectors; {dimension:,} dimensions are kept.")


def _nested(value: str) -> "Nested":
    if value == "json":
        return "json"
    if value == "refuse":
        return "refuse"
    raise InputError(f"--nested: {value!r} is not refuse or json")


def _write_chosen(records: "list[ChosenRecord]", output: Path | None, nested: "Nested") -> None:
    """Write records to a file, or as JSON Lines to standard output; report values whose representation changed."""
    from novelsum_dagster.pool.export import json_changes, record_line, write_records

    if output is None:
        for record in records:
            print(record_line(record))
        notes = json_changes(records)
    else:
        notes = write_records(records, output, nested)
    for note in notes:
        say(note)


@app.command()
def ui(
    settings: SettingsFile = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 3000,
) -> None:
    """Open the Dagster UI for the pool of a settings file, on http://127.0.0.1:3000.

    The page of [bold]novelsum explore[/] is served too, at the settings' explore_url: links in the UI open it.
    """
    from novelsum_dagster.defs.dead_runs import open_instance
    from novelsum_dagster.workspace import Workspace

    chosen = settings_in(settings)
    beside = page_beside(chosen.explore_url, port)
    require_free_port(port)
    _prepare_home(chosen)
    with open_instance(Workspace(chosen)):
        say(f"The Dagster UI: http://127.0.0.1:{port} (Ctrl-C ends it)")
    dev = ["dagster", "dev", "-m", "novelsum_dagster.definitions", "-h", "127.0.0.1", "-p", str(port)]
    raise typer.Exit(run_group([sys.executable, "-W", "ignore", "-m", *dev], *beside))


@app.command("demo-pool")
def demo_pool(
    folder: Annotated[Path, typer.Argument(help="Folder to write the files to; created if missing.")],
) -> None:
    """Write a demo pool of real text: questions about installed packages, answered from their documentation."""
    from novelsum_dagster.pool.demo import write_demo_pool

    counts = write_demo_pool(folder)
    say(f"{sum(counts.values()):,} samples in {len(counts)} files in {folder}")


app.command()(inspect)
app.command("vectors")(export)
app.command()(why)
app.command()(diff)
app.command()(reproduce)
app.command()(verify)
app.command()(sign)
app.command()(explore)
app.command("rebuild-lineage")(rebuild_lineage)
app.command()(gc)
app.command()(plan)
app.command()(restore)


def main() -> None:
    """Run the command line; user errors print one line, not a traceback."""
    warnings.simplefilter("ignore")
    try:
        app()
    except ValueError as error:
        say(f"novelsum: error: {error}")
        sys.exit(2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        home = Path(os.environ.get("DAGSTER_HOME", "."))
        if not is_disk_full(error, home):
            raise
        say(f"novelsum: error: {disk_full(home)}")
        sys.exit(1)


def _prepare_home(settings: Settings) -> str:
    """Create Dagster's home folder with our instance settings; return its path."""
    from importlib.resources import files

    from novelsum_dagster.common.files import write_bytes

    storage = settings.storage_path
    in_the_way = next((path for path in (storage, *storage.parents) if path.is_file()), None)
    if in_the_way is not None:
        raise InputError(f"storage: {in_the_way} is a file; name a folder")
    if not settings.pool.sources:
        raise InputError("pool.sources is empty; list at least one path or dataset in the settings file")
    home = Path(os.environ.setdefault("DAGSTER_HOME", str(storage / "dagster")))
    if not (home / "dagster.yaml").exists():
        text = files("novelsum_dagster").joinpath("dagster.yaml").read_text() + _compute_logs(settings)
        write_bytes(text.encode(), home / "dagster.yaml")
    return str(home)


def _compute_logs(settings: Settings) -> str:
    """Return the section of dagster.yaml that stores the steps' output on S3, if the storage is there."""
    import yaml

    if settings.s3_place is None:
        return ""
    config = {
        "bucket": settings.s3_place.bucket,
        "prefix": f"{settings.s3_place.prefix}/logs".lstrip("/"),
        **({"endpoint_url": settings.s3.endpoint_url} if settings.s3.endpoint_url else {}),
        **({"region": settings.s3.region} if settings.s3.region else {}),
        "skip_empty_files": True,
    }
    manager = {"module": "dagster_aws.s3.compute_log_manager", "class": "S3ComputeLogManager", "config": config}
    return "\n# Output of steps is stored beside everything else.\n" + yaml.safe_dump({"compute_logs": manager})


def _say_checks(result: Any) -> None:
    """Report the checks that did not pass, with expectation and finding; blocking ones come last."""
    from novelsum_dagster.quality.suites import SUITES

    expected = {(suite.step, suite.name): f"expected: {suite.description} Found: " for suite in SUITES}
    for found in sorted(result.get_asset_check_evaluations(), key=lambda found: bool(found.blocking)):
        if not found.passed:
            step, name = found.asset_key.to_user_string(), found.check_name
            words = expected.get((step, name), "") + str(found.description)
            say(f"check {'failed' if found.blocking else 'warns'}: {step}: {name}: {words}")


def _was_interrupted(result: Any) -> bool:
    from novelsum_dagster.defs.steps import INTERRUPTED

    failures = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    return any(
        data.user_failure_data.description == INTERRUPTED
        if data.user_failure_data
        else data.error.cls_name == "DagsterExecutionInterruptedError"
        for data in failures
    )


def _say_failures(result: Any) -> None:
    """Report why each step failed; failed checks are reported already, so only their consequence is."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            if data.user_failure_data:
                text = data.user_failure_data.description
            elif data.error.cls_name == "DagsterAssetCheckFailedError":
                say("novelsum: stopped by a failed blocking check; later steps did not run")
                continue
            else:
                text = _mistake(data.error) or data.error.to_string()
            say(f"novelsum: {event.step_key} failed: {text}")
    say("Finished work is kept: the next run resumes from there.")


def _mistake(error: Any) -> str | None:
    """Return the message of the InputError that a Dagster error is or was caused by; None if there is none."""
    names = {InputError.__name__, *(kind.__name__ for kind in InputError.__subclasses__())}
    while error is not None:
        if error.cls_name in names:
            return str(error.message).partition(": ")[2].strip()
        error = error.cause
    return None


def _summary(settings: Settings) -> dict[str, Any]:
    from novelsum_dagster.artifacts.newest import read_newest
    from novelsum_dagster.pool.snapshot import PoolSnapshot
    from novelsum_dagster.report.explanation import less_diverse
    from novelsum_dagster.report.novelsum_report import NovelSumReport
    from novelsum_dagster.selection.subset import Subset
    from novelsum_dagster.workspace import Workspace

    root = settings.storage_path
    snapshot = read_newest(root, "distinct_pool", PoolSnapshot)
    report = read_newest(root, "novelsum_report", NovelSumReport)
    subset = read_newest(root, "selected_subset", Subset)
    return {
        "pool": {
            "read": snapshot.read,
            "samples": snapshot.kept,
            "duplicates": snapshot.duplicates,
            "exact_duplicates": snapshot.exact_duplicates,
            "rejects": snapshot.rejects,
            "near_duplicates": snapshot.near_duplicates,
            "near_duplicates_dropped": snapshot.near_duplicates_dropped,
        },
        "novelsum": [
            {"set": row.set_name, "samples": row.size, "novelsum": row.value, "low": row.low, "high": row.high}
            for row in report.sets
            if row.measure == "novelsum"
        ],
        "compared": [one.record() for one in report.compared],
        "less_diverse": less_diverse(report.compared),
        "explanation": report.explanation.model_dump(mode="json") if report.explanation else None,
        "subset": str(root / subset.folder / "subset.jsonl"),
        "report": str(root / report.folder / "report.html"),
        "lineage": str(Workspace(settings).lineage.path),
    }


def _what_was_cut(settings: Settings) -> str | None:
    from novelsum_dagster.artifacts.newest import read_newest
    from novelsum_dagster.embedding.cut import cut_words
    from novelsum_dagster.embedding.store import VectorSet

    made = read_newest(settings.storage_path, "embeddings", VectorSet)
    return cut_words(made.cut_samples, made.samples, made.unread_fraction, settings.embedding)


def _what_changed(settings: Settings, run_id: str) -> str | None:
    """Return a sentence on what a run changed; None if it changed nothing, or is the first run."""
    from novelsum_dagster.artifacts.newest import read_newest
    from novelsum_dagster.audit.changes_words import summary
    from novelsum_dagster.audit.comparison import Changes

    root = settings.storage_path
    compared = read_newest(root, "changes", Changes).comparison(root)
    return summary(compared)[0] if compared.before is not None and compared.runs["after"] == run_id else None


def _print_pool(counts: dict[str, int]) -> None:
    near = "near-duplicates " + ("dropped" if counts["near_duplicates_dropped"] else "kept")
    names = ("read", "samples", "rejects", "exact_duplicates", "near_duplicates")
    row = [f"{counts[name]:,}" for name in names]
    print_table("Pool", (*names[:3], "exact duplicates", near), [row])


def _reference(name: str, samples: int, near_dropped: bool) -> str:
    """Return the sentence that names what NovelSum's density is computed against, without which no two compare."""
    left_out = ", near-duplicates left out" if near_dropped else ""
    return f"Density is taken from {name}: {samples:,} samples{left_out}."


def _print_sets(sets: list[dict[str, Any]], *notes: str, stderr: bool = False) -> None:
    rows = [
        (row["set"], f"{row['samples']:,}", f"{row['novelsum']:.4f}", f"{row['low']:.4f} to {row['high']:.4f}")
        for row in sets
    ]
    columns = ("set", "samples", "NovelSum", "interval")
    print_table("NovelSum at equal size", columns, rows, text=("set",), stderr=stderr)
    print(*notes, sep="\n", file=sys.stderr if stderr else sys.stdout)


def _print_measures(comparison: "Comparison") -> None:
    """Print one row per measure and one column per set, as many sets side by side as fit in the terminal."""
    from rich.console import Console

    from novelsum_dagster.diversity.measures import MEASURES

    abreast = max(1, (Console().width - 30) // 22)
    for start in range(0, len(comparison.sets), abreast):
        shown = comparison.sets[start : start + abreast]
        rows = []
        for key, known in MEASURES.items():
            if key in shown[0].values or key != "g_vendi":
                label = known.label + ("" if known.higher_is_diverse else " ↓")
                if key == "novelsum" and len(shown[0].grid) > 1:
                    label += " (first setting)"
                rows.append([label, *(_with_interval(measured.values.get(key)) for measured in shown)])
        print_table(
            f"Diversity of {len(shown[0].rows):,} samples each, with half a 95 % interval",
            ["measure", *(measured.name for measured in shown)],
            rows,
            text=("measure",),
            caption="↓ lower is more diverse",
            min_width=17,
        )
        if len(shown[0].grid) > 1:
            _print_grid(shown)


def _print_grid(sets: "list[SetMeasures]") -> None:
    rows = [
        (
            str(powers.neighbors),
            f"{powers.density_power:g}",
            f"{powers.proximity_power:g}",
            *(f"{measured.grid[powers].value:.4f}" for measured in sets),
        )
        for powers in sets[0].grid
    ]
    print_table("NovelSum at every setting", ("K", "beta", "alpha", *(measured.name for measured in sets)), rows)


def _with_interval(found: "Value | None") -> str:
    if found is None:
        return "-"
    value = f"{found.value:.4g}" if 0 < abs(found.value) < 0.01 else f"{found.value:,.4f}"
    return f"{value} ± {max(found.high - found.value, found.value - found.low):.2g}"
