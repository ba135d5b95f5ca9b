"""Progress lines and bars."""

import io

from novelsum_dagster.common.progress import LogReporter, TerminalReporter, describe


def test_a_line_has_done_total_rate_and_time_left() -> None:
    assert describe("embedding", 250, 1000, 10.0) == "embedding: 250 of 1,000 (25%), 25/s, 0 min 30 s left"
    assert describe("embedding", 1000, 1000, 10.0) == "embedding: 1,000 of 1,000 (100%), 100/s"
    assert describe("reading", 5000, 0, 2.0) == "reading: 5,000 done, 2,500/s"


def test_lines_are_rare_and_the_last_one_is_written() -> None:
    lines: list[str] = []
    with LogReporter(lines.append, every=3600).step("selecting") as progress:
        for done in range(1, 1001):
            progress(done, 1000)
    assert len(lines) == 1
    assert lines[0].startswith("selecting: 1,000 of 1,000 (100%)")


def test_a_step_without_work_writes_nothing() -> None:
    lines: list[str] = []
    with LogReporter(lines.append).step("embedding"):
        pass
    assert lines == []


def test_the_bar_draws_nothing_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with TerminalReporter(stream).step("embedding") as progress:
        progress(1, 2)
    assert stream.getvalue() == ""
