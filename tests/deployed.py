"""A deployment on loopback without containers: the files of docker/ and the processes that they name.

Belongs here: starting, asking, ending them. Does not: the tests.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.machines import wait_for
from tests.pools import write_settings
from tests.postgres import Postgres, running_postgres
from tests.s3 import BUCKET, PASSWORD, USER, Gateway, free_port

DOCKER = Path(__file__).resolve().parents[1] / "docker"
WEBHOOK_TOKEN, LINEAGE_KEY, HUB_TOKEN = "planted-webhook-2d8e", "planted-lineage-key-66b0", "planted-hub-token-a37f"
BIN = Path(sys.executable).parent
_LAUNCH = """mutation ($selector: JobOrPipelineSelector!) {
  launchRun(executionParams: {selector: $selector}) {
    __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message }
  }
}"""
_RUNS = """{ runsOrError { ... on Runs { results { runId status parentRunId tags { key value } } } } }"""


def compose() -> dict[str, Any]:
    """Return docker/compose.yaml."""
    found: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return found


def image_command() -> list[str]:
    """Return what the image runs by default: the code server."""
    (found,) = re.findall(r"^CMD (\[.*\])$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    command: list[str] = json.loads(found)
    return command


class Deployment:
    """The servers, and what they are told. Every process gets just the environment that compose.yaml gives it.

    Args:
        folder: for everything; its `pool` is what is curated.
        postgres: that runs.
        sections: of the settings.
    """

    def __init__(self, folder: Path, postgres: Postgres, **sections: Any) -> None:
        self.folder, self.postgres = folder, postgres
        (folder / "s3").mkdir()
        self.s3, self.receiver = Gateway(folder / "s3"), Receiver()
        self.port = {"code": free_port(), "webserver": free_port()}
        self.home, self.cache = folder / "home", folder / "cache"
        self.home.mkdir()
        for name in ("dagster.yaml", "workspace.yaml"):
            shutil.copy(DOCKER / name, self.home)
        self.settings = write_settings(
            folder,
            **{
                "storage": f"s3://{BUCKET}/main",
                "s3": {"endpoint_url": self.s3.endpoint},
                "openlineage": {"url": self.receiver.address},
                "notify": {"webhook_variable": "CURATION_WEBHOOK"},
                **sections,
            },
        )
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def secrets(self) -> list[str]:
        """Every secret that some process is told."""
        postgres = self.postgres.environment["DAGSTER_POSTGRES_PASSWORD"]
        return [postgres, PASSWORD, WEBHOOK_TOKEN, LINEAGE_KEY, HUB_TOKEN]

    def start(self) -> None:
        """Start the processes of the image, and wait until they answer; the code server first, as compose.yaml does."""
        for names in (["code"], ["webserver", "daemon"]):
            for name in names:
                with self.log(name).open("ab") as log:
                    self._running[name] = subprocess.Popen(
                        self._command(name),
                        env=self._environment(name),
                        cwd=self.home,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
            for name in names:
                self._await(name)

    def stop(self, name: str, by: int = signal.SIGTERM) -> None:
        """End a process and its children, as the end of its container does."""
        process = self._running.pop(name)
        process.send_signal(by)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def log(self, name: str) -> Path:
        """Return where a process's output goes."""
        return self.folder / f"{name}.log"

    def prepare(self) -> None:
        """Run docker/prepare.py."""
        done = subprocess.run(
            [sys.executable, DOCKER / "prepare.py"],
            env=self._environment("prepare"),
            cwd=self.home,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.log("prepare").write_text(done.stdout + done.stderr)
        assert done.returncode == 0, done.stderr

    def launch(self) -> str:
        """Start a curation as the UI does; return its run's id."""
        selector = {"repositoryLocationName": "novelsum", "repositoryName": "__repository__", "pipelineName": "curate"}
        answer = self.ask(_LAUNCH, selector=selector)["launchRun"]
        assert answer["__typename"] == "LaunchRunSuccess", answer
        return str(answer["run"]["runId"])

    def runs(self) -> list[dict[str, Any]]:
        """Return all runs, the newest first."""
        found: list[dict[str, Any]] = self.ask(_RUNS)["runsOrError"]["results"]
        return found

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Ask the webserver in GraphQL."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port['webserver']}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        assert "errors" not in found, found
        data: dict[str, Any] = found["data"]
        return data

    def wait_for_end(self, run_id: str, seconds: float = 300) -> dict[str, Any]:
        """Wait until a run, or the last that took its place, has ended; return that one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            runs = self.runs()
            last: dict[str, Any] = next(run for run in runs if run["runId"] == run_id)
            while following := [run for run in runs if run["parentRunId"] == last["runId"]]:
                last = following[0]
            if last["status"] == "SUCCESS":
                return last
            tags = {tag["key"]: tag["value"] for tag in last["tags"]}
            if last["status"] == "FAILURE" and tags.get("dagster/will_retry") == "false":
                break
            time.sleep(1)
        raise AssertionError(f"no success (in {seconds} s at most): {runs}\n{self.said()}")

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Return what is stored on S3."""
        client, found = self.s3.client, {}
        for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for item in page.get("Contents", []):
                found[item["Key"]] = client.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read()
        return found

    def said(self) -> str:
        """Return the end of every log."""
        return "\n".join(f"{path.name}:\n{path.read_text()[-2000:]}" for path in sorted(self.folder.glob("*.log")))

    def end(self) -> None:
        """End everything but PostgreSQL."""
        for name in list(self._running):
            self.stop(name, signal.SIGKILL)
        self.s3.stop()
        self.receiver.stop()

    def _command(self, name: str) -> list[str]:
        program, *arguments = image_command() if name == "code" else compose()["services"][name]["command"]
        here = {"0.0.0.0": "127.0.0.1", "3000": str(self.port["webserver"]), "4000": str(self.port["code"])}
        return [str(BIN / program), *(here.get(argument, argument) for argument in arguments)]

    def _environment(self, name: str) -> dict[str, str]:
        """Return the variables of compose.yaml with the values of here, and those that the image sets."""
        values = {
            **self.postgres.environment,
            "DAGSTER_LOGS_BUCKET": BUCKET,
            "DAGSTER_LOGS_ENDPOINT": self.s3.endpoint,
            "NOVELSUM_CODE_HOST": "127.0.0.1",
            "NOVELSUM_CODE_PORT": str(self.port["code"]),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": USER,
            "AWS_SECRET_ACCESS_KEY": PASSWORD,
            "OPENLINEAGE_API_KEY": LINEAGE_KEY,
            "CURATION_WEBHOOK": f"{self.receiver.address}/{WEBHOOK_TOKEN}",
            "HF_TOKEN": HUB_TOKEN,
        }
        wanted = [variable.removesuffix("_FILE") for variable in compose()["services"][name]["environment"]]
        return {
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "OMP_NUM_THREADS": "1",
            "DAGSTER_HOME": str(self.home),
            "NOVELSUM_SETTINGS": str(self.settings),
            "NOVELSUM_CACHE": str(self.cache),
            **{variable: values[variable] for variable in wanted},
        }

    def _await(self, name: str) -> None:
        process = self._running[name]
        if name == "webserver":
            wait_for(f"http://127.0.0.1:{self.port[name]}/server_info", process, self.log(name))
        elif name == "code":
            check = [str(BIN / "dagster"), "api", "grpc-health-check", "--port", str(self.port[name])]
            for _ in range(60):
                assert process.poll() is None, self.said()
                if subprocess.run(check, capture_output=True, check=False).returncode == 0:
                    return
                time.sleep(0.5)
            raise AssertionError(self.said())


class Receiver:
    """Takes what is sent to a webhook or an OpenLineage server, and answers each with an error.

    Attributes:
        address: of it.
        got: path and headers of each request.
    """

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str]]] = []
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                got.append((self.path, dict(self.headers)))
                self.send_error(403)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def deployed(folder: Path, **sections: Any) -> Iterator[Deployment]:
    """Run a whole deployment during the block."""
    with running_postgres() as postgres:
        deployment = Deployment(folder, postgres, **sections)
        try:
            deployment.s3.start()
            deployment.prepare()
            deployment.start()
            yield deployment
        finally:
            deployment.end()
