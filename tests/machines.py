"""Commands of `novelsum`: in processes with a cache folder and an environment of their own, or in this process."""

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from novelsum_dagster.cli.main import main

_NOT_PASSED_ON = ("DAGSTER_HOME", "NOVELSUM_SETTINGS")


@dataclass(frozen=True)
class Machine:
    """A settings file, and a folder for what a machine keeps beside the storage."""

    settings: Path
    cache: Path

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own."""
        environment = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED_ON}
        return subprocess.Popen(
            [sys.executable, "-m", "novelsum_dagster", *arguments, "--settings", str(self.settings)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "NOVELSUM_CACHE": str(self.cache)},
            start_new_session=True,
        )

    def novelsum(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run a command to its end."""
        process = self.start(*arguments)
        output, errors = process.communicate(timeout=900)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    def run(self) -> dict[str, Any]:
        """Curate, and return the summary."""
        done = self.novelsum("run", "--json")
        assert done.returncode == 0, done.stderr
        summary: dict[str, Any] = json.loads(done.stdout)
        return summary


def kill(process: "subprocess.Popen[str]") -> None:
    """End a process and its children as the operating system does when memory runs out."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@dataclass
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


def called(folder: Path, *arguments: str, **variables: str) -> Done:
    """Call the command line in this process, as a terminal in a folder would, with some environment variables."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before, environment, argv = Path.cwd(), dict(os.environ), sys.argv
    sys.argv = ["novelsum", *arguments]
    for name in _NOT_PASSED_ON:
        os.environ.pop(name, None)
    os.environ.update({"COLUMNS": "120", **variables})
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        os.chdir(before)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = argv
    return Done(code, out.getvalue(), err.getvalue())


def completed(folder: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    """Call the command line as `called` does, and return what a process would leave."""
    done = called(folder, *arguments, **variables)
    return subprocess.CompletedProcess(["novelsum", *arguments], done.code, done.out, done.err)


def kill_ray_head() -> None:
    """Kill the head of the Ray cluster that this process started."""
    for process in psutil.Process().children():
        if process.name() == "gcs_server":
            process.kill()
            process.wait()


def wait_for(address: str, server: "subprocess.Popen[bytes]", log: Path, **headers: str) -> None:
    """Wait until a server answers at an address."""
    request = urllib.request.Request(address, headers=headers)
    for _ in range(240):
        if server.poll() is not None:
            pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
        try:
            with urllib.request.urlopen(request):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the server did not answer in two minutes: {log.read_text()[-2000:]}")
