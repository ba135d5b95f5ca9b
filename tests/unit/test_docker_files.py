"""The files of docker/, as far as they can be looked at without running them (that: integration/test_deployment)."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from novelsum_dagster.definitions import build_defs
from novelsum_dagster.settings import Settings, load_settings
from tests.deployed import compose

DOCKER = Path(__file__).resolve().parents[2] / "docker"
VARIABLE = re.compile(r"\$\{([A-Z_0-9]+):-([^}]*)\}")


def helm() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DOCKER / "helm-values.yaml").read_text())
    return found


def test_ports_are_open_to_this_machine_only() -> None:
    ports = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert set(ports) == {"webserver", "s3"}
    assert all(port.startswith("127.0.0.1:") for found in ports.values() for port in found)


def test_every_image_is_pinned() -> None:
    images = [VARIABLE.sub(r"\2", service["image"]) for service in compose()["services"].values()]
    (base,) = re.findall(r"^ARG BASE=(.*)$", (DOCKER / "Dockerfile").read_text(), re.MULTILINE)
    for image in (*images, base):
        tag = image.rpartition("/")[2].partition(":")[2]
        assert tag and tag != "latest", image
    assert "--constraint constraints.txt" in (DOCKER / "Dockerfile").read_text()


def test_no_secret_is_in_the_files() -> None:
    for service in compose()["services"].values():
        for name, value in (service.get("environment") or {}).items():
            if re.search("PASSWORD|SECRET|KEY|TOKEN|WEBHOOK", name) and name != "AWS_ACCESS_KEY_ID":
                assert value is None or value.startswith("/run/secrets/"), name
    for secret in compose()["secrets"].values():
        assert set(secret) == {"file"}
    assert not re.search(r"(?i)(password|secret_?access_?key|token)\w*: *[\"']?\w", str(helm()))


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
    ignore = (DOCKER.parent / ".dockerignore").read_text().splitlines()
    assert ignore[1] == "*"
    for line in lines:
        if line.startswith("COPY ") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert source.startswith("--") or f"!{source}" in ignore, source


def test_the_chart_gives_a_run_the_gpu_that_the_step_asks_for() -> None:
    launcher = helm()["runLauncher"]["config"]["k8sRunLauncher"]["runK8sConfig"]
    tag = build_defs(Settings()).resolve_assets_def("embeddings").op.tags["dagster-k8s/config"]
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
