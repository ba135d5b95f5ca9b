"""Programs that run beside each other end together, whatever ends them, and leave nothing running."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from novelsum_dagster.cli.explore import page_beside

ROOT = Path(__file__).resolve().parents[2]
# Says that it runs, with a child of its own that does, too; asked to end, it says so.
PROGRAM = """
import subprocess, sys, time
from pathlib import Path
name, seconds, code = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
child = subprocess.Popen(["sleep", "120"])
name.with_suffix(".child").write_text(str(child.pid))
name.with_suffix(".runs").write_text(str(child.pid))
try:
    time.sleep(seconds)
except KeyboardInterrupt:
    time.sleep(0.3)
    name.with_suffix(".asked").write_text("")
sys.exit(code)
"""
PARENT = f"""
import sys
from novelsum_dagster.cli.terminal import run_group
first, second, seconds, code = sys.argv[1:]
command = [sys.executable, "-c", {PROGRAM!r}]
sys.exit(run_group([*command, first, seconds, code], [*command, second, "120", "0"]))
"""


class Group:
    """A process that runs two programs with `run_group`."""

    def __init__(self, folder: Path, seconds: float = 120, code: int = 0, *, through: tuple[str, ...] = ()) -> None:
        self.names = [folder / "first", folder / "second"]
        command = [*through, sys.executable, "-c", PARENT, *map(str, self.names), str(seconds), str(code)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            command,
            env=environment,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # A shell that started the tests in the background has SIGINT ignored in all that it starts.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.children: list[int] = []

    def wait_until_both_run(self) -> None:
        end = time.monotonic() + 60
        while not all(name.with_suffix(".runs").exists() for name in self.names):
            assert self.process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        time.sleep(0.1)
        self.children = [int(name.with_suffix(".child").read_text()) for name in self.names]

    def all_asked(self) -> bool:
        return all(name.with_suffix(".asked").exists() for name in self.names)


def _alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def _all_ended(pids: list[int]) -> bool:
    end = time.monotonic() + 5
    while any(map(_alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    return not any(map(_alive, pids))


@pytest.fixture
def groups() -> Iterator[list[Group]]:
    made: list[Group] = []
    yield made
    for group in made:
        for name in group.names:
            with contextlib.suppress(OSError, ValueError):
                os.kill(int(name.with_suffix(".child").read_text()), signal.SIGKILL)
        with contextlib.suppress(OSError):
            group.process.kill()
        group.process.wait()
        assert group.process.stderr is not None
        group.process.stderr.close()


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=lambda value: str(value),
)
def test_a_signal_ends_both_with_their_children(
    groups: list[Group], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    group = Group(tmp_path)
    groups.append(group)
    group.wait_until_both_run()
    group.process.send_signal(number)
    assert group.process.wait(30) == code
    assert group.all_asked()  # Neither was killed outright.
    assert _all_ended(group.children)


def test_a_second_signal_leaves_nothing_running(groups: list[Group], tmp_path: Path) -> None:
    """As from a person who presses Ctrl-C again, while the programs end."""
    group = Group(tmp_path)
    groups.append(group)
    group.wait_until_both_run()
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        group.process.send_signal(number)
        time.sleep(0.08)
    assert group.process.wait(30) == 130
    assert group.all_asked()
    assert _all_ended(group.children)


@pytest.mark.parametrize("code", [0, 3])
def test_when_the_first_ends_the_second_does_and_its_code_is_kept(
    groups: list[Group], tmp_path: Path, code: int
) -> None:
    group = Group(tmp_path, 0.5, code)
    groups.append(group)
    group.wait_until_both_run()
    assert group.process.wait(30) == code
    assert (tmp_path / "second.asked").exists()
    assert _all_ended(group.children)


def test_when_the_second_ends_the_first_goes_on(tmp_path: Path) -> None:
    """The page may be closed without ending the UI."""
    program = (
        "import sys; from novelsum_dagster.cli.terminal import run_group\n"
        "slow = [sys.executable, '-c', 'import time; time.sleep(1); print(1, flush=True)']\n"
        "sys.exit(run_group(slow, [sys.executable, '-c', 'raise SystemExit(9)']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "1\n")


def test_a_program_that_cannot_start_leaves_the_other_not_running(tmp_path: Path) -> None:
    program = (
        "import sys; from novelsum_dagster.cli.terminal import run_group\n"
        "slow = ['sh', '-c', f'echo $$ > {sys.argv[1]}; exec sleep 120']\n"
        "run_group(slow, ['/no/such/program'])"
    )
    pid = tmp_path / "pid"
    done = subprocess.run(
        [sys.executable, "-c", program, str(pid)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and "/no/such/program" in done.stderr
    assert not pid.exists() or not pid.read_text() or _all_ended([int(pid.read_text())])


def test_nohup_keeps_both_running_when_the_terminal_closes(groups: list[Group], tmp_path: Path) -> None:
    group = Group(tmp_path, through=("nohup",))
    groups.append(group)
    group.wait_until_both_run()
    group.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    assert group.process.poll() is None and all(map(_alive, group.children))
    group.process.send_signal(signal.SIGTERM)
    assert group.process.wait(30) == 143
    assert _all_ended(group.children)


def test_the_page_is_served_beside_only_where_its_port_is_free(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert page_beside(f"http://127.0.0.1:{port}", 3000) == []
        assert f"Port {port} is in use" in capfd.readouterr().err
    [command] = page_beside(f"http://127.0.0.1:{port}/", 3000)
    assert f"--server.port={port}" in command and "--server.address=127.0.0.1" in command
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("address", ["https://explore.example.org", "http://10.0.0.7:8501", "http://[::1]:8501"])
def test_a_page_elsewhere_is_not_served(address: str) -> None:
    assert page_beside(address, 3000) == []
