"""OpenLineage events: what they say, where they go, and that nothing that goes wrong with them stops a curation."""

import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest

from novelsum_dagster.lineage.openlineage import API_KEY_VARIABLE, Dataset, Events, step_run_id

GOES_ON = "the curation continues"
RUN = "0b3c8a52-8f5c-4d0e-9a59-0a4ed4d1f5b7"
FILE = Dataset("/data/a.jsonl", "5f70bf18", rows=12, namespace="file")
POOL = Dataset("raw_pool", "key-1", (("id", "string"), ("turns", "int32")), rows=10, bytes=2048)


class Endpoint(ThreadingHTTPServer):
    """An endpoint on this machine: keeps what is posted, answers as it is told."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.status = 201
        self.location = ""
        self.is_slow = False
        self.drips = False
        self.released = threading.Event()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.address}"


class Handler(BaseHTTPRequestHandler):
    server: Endpoint
    timeout: ClassVar[float] = 60

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append((self.path, dict(self.headers.items()), json.loads(body)))
        if self.server.is_slow:
            self.server.released.wait(60)
        if self.server.drips:
            self._drip()
        self.send_response(self.server.status)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers.items()), {}))
        self.send_response(200)
        self.end_headers()

    def _drip(self) -> None:
        """Send a byte at a time, so that no wait for a single one is long."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        for _ in range(3000):
            if self.server.released.wait(0.02):
                break
            self.wfile.write(b".")
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _serve() -> Iterator[Endpoint]:
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    yield from _serve()


@pytest.fixture
def elsewhere() -> Iterator[Endpoint]:
    yield from _serve()


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


def _whole_step(events: Events, run_id: str = RUN) -> None:
    events.start(run_id, "raw_pool", 1, [FILE])
    events.complete(run_id, "raw_pool", 1, [FILE], [POOL])


def _facets(value: Any) -> Iterator[dict[str, Any]]:
    """Every facet in an event."""
    if isinstance(value, list):
        for part in value:
            yield from _facets(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            if key in ("facets", "inputFacets", "outputFacets"):
                yield from part.values()
            yield from _facets(part)


def _check_form(event: dict[str, Any]) -> None:
    """What the standard requires of every event."""
    assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
    assert event["producer"] == f"https://pypi.org/project/novelsum-dagster/{version('novelsum-dagster')}/"
    assert datetime.fromisoformat(event["eventTime"]).utcoffset() is not None
    assert str(UUID(event["run"]["runId"])) == event["run"]["runId"]
    assert event["job"] == {"namespace": "curation", "name": "curate.raw_pool", "facets": event["job"]["facets"]}
    facets = list(_facets(event))
    assert facets
    for facet in facets:
        assert facet["_producer"] == event["producer"]
        assert re.fullmatch(r"https://openlineage\.io/spec/facets/\d-\d-\d/\w+\.json#/\$defs/\w+", facet["_schemaURL"])


def _values(facet: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facet.items() if not key.startswith("_")}


def _check_whole_step(started: dict[str, Any], completed: dict[str, Any]) -> None:
    for event in (started, completed):
        _check_form(event)
        run = event["run"]["facets"]
        assert _values(run["parent"]) == {
            "run": {"runId": RUN},
            "job": {"namespace": "curation", "name": "curate"},
        }
        assert _values(run["processing_engine"]) == {
            "name": "dagster",
            "version": version("dagster"),
            "openlineageAdapterVersion": version("novelsum-dagster"),
        }
        assert sorted(run) == ["parent", "processing_engine"]
        assert _values(event["job"]["facets"]["jobType"]) == {
            "processingType": "BATCH",
            "integration": "DAGSTER",
            "jobType": "STEP",
        }
        (source,) = event["inputs"]
        assert (source["namespace"], source["name"]) == ("file", "/data/a.jsonl")
        assert _values(source["facets"]["version"]) == {"datasetVersion": "5f70bf18"}
        assert _values(source["inputFacets"]["inputStatistics"]) == {"rowCount": 12}
        assert "schema" not in source["facets"]
    assert (started["eventType"], completed["eventType"]) == ("START", "COMPLETE")
    assert started["run"]["runId"] == completed["run"]["runId"] == step_run_id(RUN, "raw_pool", 1)
    assert started["eventTime"] <= completed["eventTime"]
    assert started["outputs"] == []
    (pool,) = completed["outputs"]
    assert (pool["namespace"], pool["name"]) == ("curation", "raw_pool")
    assert _values(pool["facets"]["version"]) == {"datasetVersion": "key-1"}
    assert _values(pool["facets"]["schema"]) == {
        "fields": [{"name": "id", "type": "string"}, {"name": "turns", "type": "int32"}]
    }
    assert _values(pool["outputFacets"]["outputStatistics"]) == {"rowCount": 10, "size": 2048}


def test_events_reach_an_endpoint(endpoint: Endpoint) -> None:
    said: list[str] = []
    _whole_step(Events("curation", url=endpoint.url, say=said.append))
    assert [path for path, _, _ in endpoint.requests] == ["/api/v1/lineage"] * 2
    assert all("Authorization" not in headers for _, headers, _ in endpoint.requests)
    started, completed = (event for _, _, event in endpoint.requests)
    _check_whole_step(started, completed)
    assert said == []


def test_events_are_appended_to_a_file_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folders" / "événements.jsonl"
    said: list[str] = []
    _whole_step(Events("curation", file=file, say=said.append))
    Events("curation", file=file, say=said.append).fail(RUN, "raw_pool", 2, "x")
    started, completed, failed = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    _check_whole_step(started, completed)
    _check_form(failed)
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    assert said == []


def test_steps_in_several_processes_share_a_file(tmp_path: Path) -> None:
    file = tmp_path / "events.jsonl"
    program = (
        "import sys; from pathlib import Path; from novelsum_dagster.lineage.openlineage import Dataset, Events\n"
        "events = Events('curation', file=Path(sys.argv[1]), say=print)\n"
        "wide = Dataset('wide', fields=tuple((f'column_{n}', 'string') for n in range(2000)))\n"
        f"for attempt in range(20): events.complete('{RUN}', sys.argv[2], attempt, [], [wide])"
    )
    writers = [subprocess.Popen([sys.executable, "-c", program, str(file), f"step_{n}"]) for n in range(3)]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert len({line["run"]["runId"] for line in lines}) == len(lines) == 60


def test_a_failure_has_its_message(endpoint: Endpoint) -> None:
    message = 'a.jsonl:3: not JSON:\n"ünïcode" \udcff'
    Events("curation", url=endpoint.url, say=pytest.fail).fail(RUN, "raw_pool", 3, message)
    ((_, _, event),) = endpoint.requests
    _check_form(event)
    assert event["eventType"] == "FAIL"
    assert event["run"]["runId"] == step_run_id(RUN, "raw_pool", 3)
    assert _values(event["run"]["facets"]["errorMessage"]) == {"message": message, "programmingLanguage": "PYTHON"}
    assert event["inputs"] == event["outputs"] == []


def test_a_run_id_is_that_of_one_attempt() -> None:
    first = step_run_id(RUN, "raw_pool", 1)
    assert first == step_run_id(RUN.upper(), "raw_pool", 1) == "047837d1-df1a-5762-a4e6-d452e89198bc"
    others = {
        step_run_id(RUN, "raw_pool", 2),
        step_run_id(RUN, "density", 1),
        step_run_id("7d444840-9dc0-11d1-b245-5ffdce74fad2", "raw_pool", 1),
    }
    assert len({first, *others}) == 4


def test_facets_of_what_is_not_known_are_left_out(endpoint: Endpoint) -> None:
    bare = Dataset("a")
    Events("curation", url=endpoint.url, say=pytest.fail).complete(RUN, "raw_pool", 1, [bare], [bare])
    ((_, _, event),) = endpoint.requests
    assert event["inputs"] == [{"namespace": "curation", "name": "a", "facets": {}, "inputFacets": {}}]
    assert event["outputs"] == [{"namespace": "curation", "name": "a", "facets": {}, "outputFacets": {}}]


@pytest.mark.parametrize("ending", ["/catalogue", "/catalogue/"])
def test_an_endpoint_may_be_in_a_folder(endpoint: Endpoint, ending: str) -> None:
    Events("curation", url=endpoint.url + ending, say=pytest.fail).start(RUN, "raw_pool", 1, [])
    assert endpoint.requests[0][0] == "/catalogue/api/v1/lineage"


def test_the_key_is_sent_and_never_logged(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(API_KEY_VARIABLE, "s3cret-key")
    said: list[str] = []
    events = Events("curation", url=endpoint.url, say=said.append)
    events.start(RUN, "raw_pool", 1, [])
    endpoint.status = 403
    events.fail(RUN, "raw_pool", 1, "x")
    assert [headers["Authorization"] for _, headers, _ in endpoint.requests] == ["Bearer s3cret-key"] * 2
    assert said == [f"{endpoint.url}: lineage events cannot be sent: it answered with HTTP status 403; " + GOES_ON]
    assert caplog.records  # The libraries do log.
    assert "s3cret" not in caplog.text


@pytest.mark.parametrize("url", ["", "localhost:5000", "ftp://host", "http://", "http://[host", "http://host:99999"])
def test_a_url_that_is_none_is_said_once(url: str) -> None:
    said: list[str] = []
    _whole_step(Events("curation", url=url, say=said.append))
    assert len(said) == 1
    assert said[0].startswith(f"{url}: lineage events cannot be sent: ")


def test_a_refused_connection_is_said_once_and_tried_again(endpoint: Endpoint) -> None:
    said: list[str] = []
    events = Events("curation", url=endpoint.url, say=said.append)
    endpoint.shutdown()
    endpoint.socket.close()
    _whole_step(events)
    assert said == [f"{endpoint.url}: lineage events cannot be sent: it cannot be reached; " + GOES_ON]


def test_an_error_of_the_endpoint_is_said_once_and_not_retried(endpoint: Endpoint) -> None:
    said: list[str] = []
    events = Events("curation", url=endpoint.url, say=said.append)
    endpoint.status = 500
    _whole_step(events)
    assert len(endpoint.requests) == 2  # One for each event.
    endpoint.status = 200
    events.fail(RUN, "raw_pool", 2, "x")
    assert endpoint.requests[2][2]["eventType"] == "FAIL"
    assert said == [f"{endpoint.url}: lineage events cannot be sent: it answered with HTTP status 500; " + GOES_ON]


@pytest.mark.parametrize("way", ["is_slow", "drips"])
def test_an_endpoint_that_hangs_is_left_alone(endpoint: Endpoint, way: str) -> None:
    said: list[str] = []
    setattr(endpoint, way, True)
    begin = time.monotonic()
    _whole_step(Events("curation", url=endpoint.url, say=said.append, seconds=0.5))
    assert time.monotonic() - begin < 30  # It would hang for 60 s an event.
    assert said == [f"{endpoint.url}: lineage events cannot be sent: no answer within 0.5 s; " + GOES_ON]


def test_a_process_ends_while_an_endpoint_hangs(endpoint: Endpoint) -> None:
    endpoint.drips = True
    program = (
        "import sys; from novelsum_dagster.lineage.openlineage import Events\n"
        f"Events('curation', url=sys.argv[1], say=print, seconds=0.5).start('{RUN}', 'raw_pool', 1, [])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, endpoint.url], timeout=60, check=True, capture_output=True, text=True
    )
    assert ended.stdout.count("\n") == 1
    assert ended.stderr == ""


@pytest.mark.parametrize("status", [302, 307])
def test_no_event_follows_a_redirect(endpoint: Endpoint, elsewhere: Endpoint, status: int) -> None:
    said: list[str] = []
    endpoint.status, endpoint.location = status, f"{elsewhere.url}/api/v1/lineage"
    _whole_step(Events("curation", url=endpoint.url, say=said.append))
    assert said == [f"{endpoint.url}: lineage events cannot be sent: it answered with HTTP status {status}; " + GOES_ON]
    assert (len(endpoint.requests), elsewhere.requests) == (2, [])


def test_surroundings_change_nothing(
    endpoint: Endpoint, elsewhere: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {"transport": {"type": "http", "url": elsewhere.url}, "facets": {"environment_variables": ["HOME"]}}
    (tmp_path / "openlineage.yml").write_text(json.dumps(config))
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login someone password s3cret\n")
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "OPENLINEAGE_URL": elsewhere.url,
        "OPENLINEAGE_ENDPOINT": "other",
        "OPENLINEAGE_DISABLED": "true",
        "OPENLINEAGE_CONFIG": str(tmp_path / "openlineage.yml"),
        "OPENLINEAGE__TRANSPORT": json.dumps(config["transport"]),
        "HTTP_PROXY": elsewhere.url,
        "http_proxy": elsewhere.url,
        "NO_PROXY": "",
        "no_proxy": "",
        "NETRC": str(tmp_path / "netrc"),
        API_KEY_VARIABLE: "key",
    }.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    _whole_step(Events("curation", url=endpoint.url, say=pytest.fail))
    _whole_step(Events("curation", file=tmp_path / "events.jsonl", say=pytest.fail))
    _check_whole_step(*(event for _, _, event in endpoint.requests))
    _check_whole_step(*map(json.loads, (tmp_path / "events.jsonl").read_text().splitlines()))
    assert {(path, headers["Authorization"]) for path, headers, _ in endpoint.requests} == {
        ("/api/v1/lineage", "Bearer key")
    }
    assert elsewhere.requests == []
    assert dict(os.environ) == before


def test_a_file_that_cannot_be_written_is_said_once_and_tried_again(tmp_path: Path) -> None:
    said: list[str] = []
    file = tmp_path / "events.jsonl"
    file.mkdir()
    events = Events("curation", file=file, say=said.append)
    _whole_step(events)
    file.rmdir()
    events.fail(RUN, "raw_pool", 1, "x")
    assert said == [f"{file}: lineage events cannot be sent: Is a directory; " + GOES_ON]
    assert json.loads(file.read_text())["eventType"] == "FAIL"


def test_a_folder_that_cannot_be_made_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "taken").write_text("")
    _whole_step(Events("curation", file=tmp_path / "taken" / "events.jsonl", say=said.append))
    assert said == [f"{tmp_path}/taken/events.jsonl: lineage events cannot be sent: File exists; " + GOES_ON]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_file_that_hangs_is_left_alone(tmp_path: Path) -> None:
    said: list[str] = []
    pipe = tmp_path / "events"
    os.mkfifo(pipe)
    events = Events("curation", file=pipe, say=said.append, seconds=0.5)
    events.start(RUN, "raw_pool", 1, [])
    assert said == [f"{pipe}: lineage events cannot be sent: no answer within 0.5 s; " + GOES_ON]
    assert json.loads(pipe.read_text())["eventType"] == "START"  # A reader sets the thread free.


def test_a_run_id_that_is_none_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    _whole_step(Events("curation", file=tmp_path / "events.jsonl", say=said.append), run_id="r1")
    assert len(said) == 1
    assert not (tmp_path / "events.jsonl").exists()


def test_one_place_is_given(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give either file or url"):
        Events("curation", say=print)
    with pytest.raises(ValueError, match="give either file or url"):
        Events("curation", file=tmp_path / "a", url="http://host", say=print)


def test_the_module_loads_without_the_libraries() -> None:
    program = (
        "import sys; import novelsum_dagster.lineage.openlineage\n"
        "sys.exit(any(name in sys.modules for name in ('openlineage', 'requests', 'dagster')))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
