"""Running suites with Great Expectations, and storing the verdicts.

Belongs here: validation, verdict files, the gate. Does not: what is expected (`suites`), Dagster.
"""

import os
import warnings
from typing import TYPE_CHECKING, Any

from novelsum_dagster.artifacts.layout import verdicts_file
from novelsum_dagster.artifacts.verdicts import Failure, Verdict, describe
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import write_bytes
from novelsum_dagster.quality.suites import Subject, Suite, suites_of

if TYPE_CHECKING:
    import pandas as pd


def validate(suite: Suite, subject: Subject) -> Verdict:
    """Run one suite."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    import great_expectations.expectations as gxe
    from great_expectations.core.expectation_suite import ExpectationSuite
    from great_expectations.data_context.types.base import ProgressBarsConfig

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = ProgressBarsConfig(globally=False)
        asset = context.data_sources.add_pandas("frame").add_dataframe_asset("rows")
        definition = asset.add_batch_definition_whole_dataframe("all")
        frame, expectations = suite.expect(gxe, subject)
        batch = definition.get_batch(batch_parameters={"dataframe": frame})
        named = ExpectationSuite(name=suite.name, expectations=expectations)
        result = batch.validate(named, result_format="COMPLETE")
    failures = tuple(_failure(one, frame) for one in result.results if not one.success)
    return Verdict(
        step=suite.step,
        name=suite.name,
        key=subject.output.key,
        blocking=suite.blocking,
        passed=not failures,
        expectations=len(expectations),
        failures=failures,
    )


def check(step: str, subject: Subject) -> list[Verdict]:
    """Run all suites of a step on its output and store the verdicts under `root/checks`."""
    verdicts = [validate(suite, subject) for suite in suites_of(step)]
    text = "\n".join(verdict.model_dump_json() for verdict in verdicts) + "\n"
    write_bytes(text.encode(), subject.root / verdicts_file(step, subject.output.key))
    return verdicts


def require_passed(step: str, subject: Subject) -> None:
    """Require that every blocking suite passed on exactly this output; suites that never ran are run.

    Raises:
        InputError: with every failure.
    """
    failed = [verdict for verdict in verdicts_of(step, subject) if verdict.blocking and not verdict.passed]
    if failed:
        raise InputError(
            f"{step} {subject.output.key} failed its checks, so later steps do not run: "
            + "; ".join(f"{verdict.name}: {describe(verdict.failures)}" for verdict in failed)
        )


def verdicts_of(step: str, subject: Subject) -> list[Verdict]:
    """Return the stored verdicts on exactly this output; suites that never ran are run."""
    path = subject.root / verdicts_file(step, subject.output.key)
    if not path.exists():
        return check(step, subject)
    return [Verdict.model_validate_json(line) for line in path.read_text().splitlines()]


def _row(frame: "pd.DataFrame", at: int) -> str:
    """Return a row as text, so that a failure names the sample, file or source."""
    values = frame.iloc[at].to_dict().items()
    return " ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!s:.60}" for name, value in values
    )


def _failure(result: Any, frame: "pd.DataFrame") -> Failure:
    config = result.expectation_config
    arguments = {name: value for name, value in config.kwargs.items() if name not in ("batch_id", "column_set")}
    if result.exception_info and result.exception_info.get("raised_exception"):
        observed = str(result.exception_info.get("exception_message"))
    elif "unexpected_count" in result.result:
        count, total = result.result["unexpected_count"], result.result.get("element_count")
        examples = [_row(frame, at) for at in (result.result.get("unexpected_index_list") or [])[:3]]
        observed = f"{count} of {total} rows" + (f", such as {'; '.join(examples)}" if examples else "")
    else:
        observed = f"found {result.result.get('observed_value')}"
    shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
    return Failure(expectation=f"{config.type}({shown})", observed=observed)
