"""A real PostgreSQL on loopback, of Debian's packages, which asks for its password.

Belongs here: starting and ending it. Does not: the tests.
"""

import getpass
import os
import re
import shutil
import subprocess
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.s3 import free_port

USER, PASSWORD = "dagster", "planted-postgres-91c4"


class Postgres:
    """A server over a new folder, with one empty database."""

    def __init__(self) -> None:
        programs = _programs()
        if programs is None:
            pytest.skip("needs PostgreSQL's server (Debian: postgresql), which is not installed")
        self.port = free_port()
        self._programs = programs
        # Not in pytest's folder, which the user postgres may not enter; PostgreSQL does not run as root.
        self._folder = Path(tempfile.mkdtemp(prefix="novelsum-postgres-"))
        self._as_user = ["runuser", "-u", "postgres", "--"] if getpass.getuser() == "root" else []
        secret = self._folder / "password"
        secret.write_text(PASSWORD)
        if self._as_user:
            for path in (self._folder, secret):
                shutil.chown(path, "postgres")
        self._run("initdb", "-D", str(self._data), "-U", USER, "-A", "scram-sha-256", "--pwfile", str(secret), "-N")

    @property
    def environment(self) -> dict[str, str]:
        """What docker/dagster.yaml asks for."""
        return {
            "DAGSTER_POSTGRES_HOST": "127.0.0.1",
            "DAGSTER_POSTGRES_PORT": str(self.port),
            "DAGSTER_POSTGRES_DB": "postgres",
            "DAGSTER_POSTGRES_USER": USER,
            "DAGSTER_POSTGRES_PASSWORD": PASSWORD,
        }

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self._folder}"
        self._run("pg_ctl", "-D", str(self._data), "-l", str(self._folder / "log"), "-o", options, "-w", "start")

    def stop(self) -> None:
        """End it, and every connection to it."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop")

    def dump(self) -> str:
        """Return everything in it, as SQL."""
        return self._run("pg_dump", "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-w", "postgres")

    def packed(self) -> str:
        """Return what Dagster stores compressed, which the dump shows as digits only."""
        found = re.findall(r"\\\\x([0-9a-f]+)", self.dump())
        return "\n".join(zlib.decompress(bytes.fromhex(one)).decode() for one in found)

    def log(self) -> str:
        """Return what it has logged."""
        return (self._folder / "log").read_text()

    def remove(self) -> None:
        """End it if it runs, and delete what it holds."""
        if (self._data / "postmaster.pid").exists():
            self.stop()
        shutil.rmtree(self._folder)

    @property
    def _data(self) -> Path:
        return self._folder / "data"

    def _run(self, program: str, *arguments: str) -> str:
        with (self._folder / "output").open("w") as output:  # Not a pipe: the server would keep it open.
            done = subprocess.run(
                [*self._as_user, str(self._programs / program), *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env={"PGPASSWORD": PASSWORD, "LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]},
                cwd="/",
                timeout=120,
                check=False,
            )
        said = (self._folder / "output").read_text()
        assert done.returncode == 0, said
        return said


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a server during the block."""
    server = Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


def _programs() -> Path | None:
    """Return the folder of the newest server's programs."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return folders[-1] if folders else None
