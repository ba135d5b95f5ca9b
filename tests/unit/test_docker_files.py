"""The files of docker/, as far as they can be looked at without running them (that: integration/test_deployment)."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from novelsum_dagster.definitions import build_defs
from novelsum_dagster.settings import Settings, load_settings
from tests.deployed import compose
from tests.s3 import free_port

ROOT = Path(__file__).resolve().parents[2]
DOCKER = ROOT / "docker"
VARIABLE = re.compile(r"\$\{([A-Z_0-9]+):-([^}]*)\}")


EXACT = re.compile(
    r"(.*/)?(postgres:\d+\.\d+|minio:RELEASE\.[\dTZ-]+|[\w-]+:\d+\.\d+\.\d+)(-[\w-]+)?|.*@sha256:[0-9a-f]{64}"
)
"""A version down to its last part, of which PostgreSQL has two, or a digest."""


def helm() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "helm-values.yaml").read_text())
    return found


def test_ports_are_open_to_this_machine_only() -> None:
    ports = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert set(ports) == {"webserver", "s3"}
    assert all(port.startswith("127.0.0.1:") for found in ports.values() for port in found)


def test_every_image_is_pinned_to_its_last_part() -> None:
    images = [VARIABLE.sub(r"\2", service["image"]) for service in compose()["services"].values()]
    (base,) = re.findall(r"^ARG BASE=(.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    for image in (*images, base):
        assert EXACT.fullmatch(image), image
    assert not EXACT.fullmatch("docker.io/library/python:3.11-slim-bookworm")
    assert {"--constraint constraints.txt", "--build-constraint constraints.txt"} <= set(
        re.findall(r"--[a-z-]+ constraints\.txt", (DOCKER / "Dockerfile").read_text())
    )


def test_every_package_that_is_needed_is_pinned() -> None:
    """With those that the needed ones need, and pip itself."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    seen, left = set[tuple[str, str]](), [Requirement("novelsum-dagster[dev]"), Requirement("pip")]
    while left:
        one = left.pop()
        for extra in {"", *one.extras} - {extra for name, extra in seen if name == one.name}:
            seen.add((one.name, extra))
            needed = map(Requirement, distribution(one.name).requires or [])
            left += [other for other in needed if other.marker is None or other.marker.evaluate({"extra": extra})]
    names = {canonicalize_name(name) for name, _ in seen} - {"novelsum-dagster"}
    assert "tenacity" in names and names - pinned == set()


def test_no_secret_is_in_the_files() -> None:
    for service in compose()["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN|WEBHOOK", name) and name != "AWS_ACCESS_KEY_ID":
                assert value is None or value.startswith("/run/secrets/"), name
    for secret in compose()["secrets"].values():
        assert set(secret) == {"file"}
    assert not re.search(r"(?i)(password|secret_?access_?key|token)\w*: *[\"']?\w", str(helm()))
    # Everybody on a machine sees the arguments of its programs.
    assert "--from-literal" not in (ROOT / "docs" / "deploy.md").read_text()


def test_every_variable_of_compose_is_in_the_example_with_its_default() -> None:
    used = dict(VARIABLE.findall((DOCKER / "compose.yaml").read_text()))
    lines = [line for line in (DOCKER / ".env.example").read_text().splitlines() if line and line[0] != "#"]
    assert dict(line.split("=", 1) for line in lines) == used


def test_the_curation_is_where_compose_has_its_store() -> None:
    settings, defaults = load_settings(DOCKER / "curation.yaml"), dict(VARIABLE.findall(str(compose())))
    assert settings.s3_place is not None
    assert (settings.s3_place.bucket, settings.s3.endpoint_url) == (defaults["S3_BUCKET"], defaults["S3_ENDPOINT"])
    mounts = compose()["services"]["code"]["volumes"]
    assert [source.path for source in settings.pool.sources] == ["/data/**/*.jsonl"]
    assert any(mount.endswith(":/data:ro") for mount in mounts)


def test_every_service_starts_again_and_says_how_it_is() -> None:
    services = compose()["services"]
    for name, service in services.items():
        assert service["restart"] == ("no" if name == "prepare" else "unless-stopped")
        assert service["cap_drop"] == ["ALL"]
        # The code server's is the image's.
        assert "healthcheck" in service or name.startswith("code")
    assert "grpc-health-check" in (DOCKER / "Dockerfile").read_text()


def test_the_image_is_not_root_and_has_no_more_than_it_needs() -> None:
    lines = (DOCKER / "Dockerfile").read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001:10001"]
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert source.startswith("--") or f"!{source}" in ignore, source


def test_a_server_of_ones_own_takes_the_place_of_one_here() -> None:
    """Of a service with scale 0 compose starts nothing, and nothing waits for it."""
    services, example = compose()["services"], (DOCKER / ".env.example").read_text()
    for name, variable in {"s3": "S3", "postgres": "POSTGRES"}.items():
        assert services[name]["scale"] == f"${{{variable}_SERVERS:-1}}"
        assert f"{variable}_SERVERS=0" in example
    assert services["prepare"]["environment"]["DAGSTER_POSTGRES_HOST"] == "${POSTGRES_HOST:-postgres}"


def make(*arguments: str, cwd: Path = ROOT, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run make with the Makefile as it is shipped, as if no other make had started this and no default were changed."""
    defaults = re.findall(r"^(\w+) \?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    outer = {"MFLAGS", *defaults, *(name for name in os.environ if name.startswith("MAKE"))}
    own = {name: value for name, value in os.environ.items() if name not in outer}
    return subprocess.run(
        ["make", "--file", str(ROOT / "Makefile"), *arguments],
        env={**own, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def test_down_ends_the_services_of_every_profile() -> None:
    said = make("--dry-run", "down").stdout
    profiles = {profile for service in compose()["services"].values() for profile in service.get("profiles", [])}
    assert profiles == {"cpu", "gpu"} == set(re.findall(r"--profile (\w+)", said)) and said.endswith(" down\n")


@pytest.mark.parametrize(
    ("answering", "taken"), [({"docker", "buildah"}, "docker"), ({"buildah"}, "buildah"), (set(), None)]
)
def test_the_image_is_built_by_the_first_engine_that_answers(
    tmp_path: Path, answering: set[str], taken: str | None
) -> None:
    for name in ("docker", "podman", "buildah"):
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nexit {int(name not in answering)}\n")
        program.chmod(0o755)
    done = make("--dry-run", "image", PATH=f"{tmp_path}:{os.environ['PATH']}")
    if taken is None:
        assert done.returncode != 0 and "neither docker nor podman nor buildah answers" in done.stderr
    else:
        assert done.stdout.startswith(f"{taken} build ") and f"check-image {taken} " in done.stdout


class Advisories(BaseHTTPRequestHandler):
    """Knows one weakness, of tenacity, in the form of OSV."""

    asked: ClassVar[dict[str, str]] = {}

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = query["package"]["name"]
        self.asked[name] = query["version"]
        known = {"vulns": [{"id": "TEST-1", "summary": "weak", "affected": []}]} if name == "tenacity" else {}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(known).encode())

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def audit(folder: Path, port: int) -> "subprocess.CompletedProcess[str]":
    """Run `make audit` in a folder with the advisories of a port."""
    (folder / ".venv").mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / ".venv" / ".ready").touch()
    settings = {"PIP_AUDIT_VULNERABILITY_SERVICE": "osv", "PIP_AUDIT_OSV_URL": f"http://127.0.0.1:{port}"}
    return make("audit", f"BIN={Path(sys.executable).parent}", cwd=folder, **settings)


@pytest.mark.slow
def test_the_audit_asks_about_all_that_is_installed(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Advisories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = audit(tmp_path, server.server_address[1])
        server.shutdown()
    assert done.returncode != 0 and re.search("tenacity .*TEST-1", done.stdout), done.stderr
    assert {"pip", "setuptools", "torch"} <= Advisories.asked.keys()
    assert "+" not in Advisories.asked["torch"], "the index knows no local versions"
    listed = {one["name"] for one in json.loads((tmp_path / "sbom.json").read_text())["components"]}
    assert {canonicalize_name(name) for name in listed} >= {canonicalize_name(name) for name in Advisories.asked}


@pytest.mark.slow
def test_an_audit_that_cannot_ask_says_so_in_a_line(tmp_path: Path) -> None:
    done = audit(tmp_path, free_port())
    assert done.returncode != 0 and "Traceback" not in done.stdout + done.stderr
    assert "ConnectionError" in done.stdout.splitlines()[-1]
    assert json.loads((tmp_path / "sbom.json").read_text())["components"]


class Store(BaseHTTPRequestHandler):
    """An S3 without buckets, which keeps what it is asked to make."""

    made: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.send_error(404)

    def do_PUT(self) -> None:
        self.made.append(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


def test_a_bucket_is_made_in_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which AWS must be told, but for us-east-1, which it must not."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    make_bucket = runpy.run_path(str(DOCKER / "prepare.py"))["make_bucket"]
    with ThreadingHTTPServer(("127.0.0.1", 0), Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for region in ("us-east-1", "eu-central-1"):
            make_bucket(f"http://127.0.0.1:{server.server_address[1]}", "curations", region)
        server.shutdown()
    without, within = Store.made
    assert without == "" and "<LocationConstraint>eu-central-1</LocationConstraint>" in within


def test_the_chart_gives_a_run_the_gpu_that_the_step_asks_for() -> None:
    launcher = helm()["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    tag = build_defs(Settings(device="cuda")).resolve_assets_def("embeddings").op.tags["dagster-k8s/config"]
    wanted = json.loads(tag)["container_config"]["resources"]["limits"]
    assert launcher["containerConfig"]["resources"]["limits"].items() >= wanted.items()
    assert helm()["concurrency"] == {
        "enabled": True,
        "pools": {"defaultLimit": 1, "granularity": "op"},
        "runs": {"maxConcurrentRuns": 1},
    }


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ({"AWS_SECRET_ACCESS_KEY_FILE": "key"}, {"AWS_SECRET_ACCESS_KEY": "it's $HOME\nand `id`"}),
        ({"AWS_SECRET_ACCESS_KEY": "plain"}, {"AWS_SECRET_ACCESS_KEY": "plain"}),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "key"}, {"AWS_WEB_IDENTITY_TOKEN_FILE": "key"}),
    ],
)
def test_secrets_that_come_as_files(tmp_path: Path, given: dict[str, str], seen: dict[str, str]) -> None:
    (tmp_path / "key").write_text("it's $HOME\nand `id`\n")
    done = subprocess.run(
        [str(DOCKER / "with-secrets"), "env", "-0"],
        env={"PATH": "/usr/bin:/bin", **given},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    found = dict(line.split("=", 1) for line in done.stdout.split("\0") if line)
    assert {name: value for name, value in found.items() if name.startswith("AWS_")} == seen


def test_a_secret_whose_file_is_missing_stops_the_start(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "DAGSTER_POSTGRES_PASSWORD_FILE": str(tmp_path / "none")}
    done = subprocess.run(
        [str(DOCKER / "with-secrets"), "echo", "started"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0 and "started" not in done.stdout and "none" in done.stderr
