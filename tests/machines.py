"""Machines of their own: processes of `novelsum` with a cache folder and an environment that no other has."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
