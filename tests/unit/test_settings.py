"""Settings are read from YAML, and every mistake is named with its file, line and key."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.settings import SETTINGS_VARIABLE, Settings, load_settings, settings_path

PROJECT = Path(__file__).resolve().parents[2]


def load(folder: Path, text: str) -> Settings:
    """Load settings from a text."""
    (folder / "curation.yaml").write_text(text)
    return load_settings(folder / "curation.yaml")


def refused(folder: Path, text: str) -> list[str]:
    """Return the lines of the error, without the file's name, which each must begin with."""
    with pytest.raises(InputError) as error:
        load(folder, text)
    name = f"{folder / 'curation.yaml'}:"
    lines = str(error.value).split("\n")
    assert all(line.startswith(name) for line in lines)
    return [line.removeprefix(name) for line in lines]


@pytest.mark.parametrize("text", ["", "\n", "# a comment\n", "---\n", "null", "\ufeff", "{}", "pool: {}"])
def test_a_file_without_settings_has_the_defaults(tmp_path: Path, text: str) -> None:
    settings = load(tmp_path, text)
    assert settings == Settings(base=tmp_path)
    measure = settings.novelsum
    assert (measure.neighbors, measure.density_power, measure.proximity_power) == (10, 0.5, 1)


@pytest.mark.parametrize(
    ("text", "by"),
    [("method: minhash", "minhash"), ("method: off", "off"), ("method: 'off'", "off"), ("by: off", "off")],
)
def test_the_former_name_of_by_is_understood(tmp_path: Path, text: str, by: str) -> None:
    given = f"pool: {{near_duplicates: {{{text}, drop: true}}}}"
    if "method" in text:
        with pytest.warns(DeprecationWarning, match="method is now called by"):
            found = load(tmp_path, given).pool.near_duplicates
    else:
        found = load(tmp_path, given).pool.near_duplicates
    assert (found.by, found.drop) == (by, True)
    assert "method" not in found.model_dump()


def test_near_duplicates_can_be_kept_by_quality(tmp_path: Path) -> None:
    text = "pool: {near_duplicates: {keep: quality}}\nselection: {quality: score}"
    assert load(tmp_path, text).pool.near_duplicates.keep == "quality"


def test_all_values_are_read(tmp_path: Path) -> None:
    values: dict[str, Any] = {
        "storage": "out",
        "pool": {
            "sources": [
                {"path": "a/*.jsonl", "form": "alpaca", "name": "a"},
                {"dataset": "some/set", "split": "test", "revision": "abc"},
            ],
            "max_reject_fraction": 0.5,
            "max_characters": 10,
            "near_duplicates": {"by": "off", "threshold": 0.5, "drop": True},
        },
        "selection": {"strategy": "random", "k": 5, "seed": 0},
        "device": "cuda:1",
        "embedding": {"dtype": "float32", "pooling": "last_token"},
        "checks": {"max_source_share": 1.0},
    }
    settings = load(tmp_path, yaml.safe_dump(values))
    shown = settings.model_dump(mode="json", exclude_unset=True)
    shown["pool"]["sources"] = list(shown["pool"]["sources"])
    assert shown == values


def test_the_shipped_settings_load() -> None:
    settings = load_settings(PROJECT / "curation.yaml")
    assert [source.path for source in settings.pool.sources] == ["demo/pool/*"]


@pytest.mark.parametrize(
    ("text", "line", "key", "says"),
    [
        ("storage: out\nselection:\n  k: 0\n", 3, "selection.k", "greater than 0"),
        ("selection:\n  k: ten\n", 2, "selection.k", "valid integer"),
        ("selection:\n  k: 1.5\n", 2, "selection.k", "valid integer"),
        ("selection:\n  seed: -1\n", 2, "selection.seed", "greater than or equal to 0"),
        ("selection:\n  seed: 4294967296\n", 2, "selection.seed", "less than 4294967296"),
        ("selection:\n  strategy: best\n", 2, "selection.strategy", "'novelselect', 'random'"),
        ("storage: [a]\n", 1, "storage", "valid string"),
        ("\n\npool:\n  max_reject_fraction: 1.1\n", 4, "pool.max_reject_fraction", "less than or equal to 1"),
        ("pool:\n  max_reject_fraction: .nan\n", 2, "pool.max_reject_fraction", "less than or equal to 1"),
        ("pool:\n  near_duplicates:\n    threshold: 0\n", 3, "pool.near_duplicates.threshold", "greater than 0"),
        ("pool:\n  near_duplicates:\n    similarity: 1.1\n", 3, "pool.near_duplicates.similarity", "less than"),
        ("pool:\n  near_duplicates:\n    by: simhash\n", 3, "pool.near_duplicates.by", "'embedding' or 'both'"),
        ("pool:\n  near_duplicates: {method: off, by: off}\n", 2, "pool.near_duplicates", "method is the former name"),
        ("pool:\n  near_duplicates:\n    keep: quality\n", 1, "settings", "keep: quality needs selection.quality"),
        ("pool:\n  near_duplicates: {drop: perhaps}\n", 2, "pool.near_duplicates.drop", "valid boolean"),
        ("pool:\n  sources: a.jsonl\n", 2, "pool.sources", "valid tuple"),
        ("pool:\n  sources:\n    - a.jsonl\n", 3, "pool.sources.0", "valid dictionary"),
        ("pool:\n  sources:\n    - path: a\n    - {}\n", 4, "pool.sources.1", "give either path or dataset"),
        ("pool:\n  sources:\n    - path: a\n      dataset: b\n", 3, "pool.sources.0", "give either path or dataset"),
        ("pool:\n  sources:\n    - path: a\n      form: xml\n", 4, "pool.sources.0.form", "'alpaca'"),
        ("pool:\n  sources:\n    - path: a\n      name: ''\n", 4, "pool.sources.0.name", "at least 1 character"),
        ("pool:\n", 1, "pool", "valid dictionary"),
        ("novelsum:\n  density_power: .inf\n", 2, "novelsum.density_power", "finite"),
        ("novelsum:\n  proximity_power: -1\n", 2, "novelsum.proximity_power", "greater than or equal to 0"),
        ("device: gpu\n", 1, "device", "match pattern"),
        ("embedding:\n  device: cpu\n", 2, "embedding.device", "set device at the top level of the file"),
        ("selection:\n  device: cuda\n", 2, "selection.device", "set device at the top level"),
        ("study:\n  training:\n    device: mps\n", 3, "study.training.device", "set device at the top level"),
        ("embedding:\n  pooling: cls\n", 2, "embedding.pooling", "'last_token' or 'position_weighted_mean'"),
        ("checks:\n  max_source_growth: 0.5\n", 2, "checks.max_source_growth", "greater than or equal to 1"),
        ("typo: 1\n", 1, "typo", "no such setting"),
        ("pool:\n  souces: []\n", 2, "pool.souces", "no such setting"),
        ("pool:\n  sources:\n    - path: a\n      fmt: x\n", 4, "pool.sources.0.fmt", "no such setting"),
        ("storage: a\nbase: /\n", 2, "base", "no such setting"),
        ("storage: a\n7: x\n", 2, "7", ""),
        ("pool:\n  7: x\n", 2, "pool.7", ""),
        ("a: &x {k: 0}\nselection: *x\n", 1, "selection.k", "greater than 0"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_file_line_and_key(tmp_path: Path, text: str, line: int, key: str, says: str) -> None:
    errors = refused(tmp_path, text)
    (mine,) = [error for error in errors if error.split(": ")[1] == key]
    assert mine.startswith(f"{line}: {key}: ") and says in mine


@pytest.mark.parametrize(
    ("text", "key", "says"),
    [
        ("openlineage: {url: 'https://someone:planted@host'}", "openlineage.url", "OPENLINEAGE_API_KEY"),
        ("openlineage: {url: 'https://host?key=planted'}", "openlineage.url", "OPENLINEAGE_API_KEY"),
        ("openlineage: {url: 'https://host#planted'}", "openlineage.url", "OPENLINEAGE_API_KEY"),
        ("explore_url: 'https://someone:planted@host'", "explore_url", "no user and password"),
    ],
)
def test_no_setting_holds_a_secret(tmp_path: Path, text: str, key: str, says: str) -> None:
    """The lineage keeps all settings."""
    (error,) = refused(tmp_path, text)
    assert error.startswith(f"1: {key}: must have no ") and says in error and "planted" not in error


@pytest.mark.parametrize("revision", ["main", "v1.0", "abc1234", "A" * 40, "a" * 41, "refs/pr/1"])
@pytest.mark.parametrize("section", ["embedding: {{revision: {}}}", "study: {{training: {{revision: {}}}}}"])
def test_a_models_revision_is_a_whole_commit(tmp_path: Path, section: str, revision: str) -> None:
    (error,) = refused(tmp_path, section.format(revision))
    assert "revision: must be a full commit, 40 hexadecimal digits, shown on the model's page on the hub" in error
    load(tmp_path, section.format("'" + "0" * 40 + "'"))


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    errors = refused(tmp_path, "typo: 1\npool:\n  max_characters: 0\nselection:\n  k: x\n")
    places = sorted(error.split(": ")[:2] for error in errors)
    assert places == [["1", "typo"], ["3", "pool.max_characters"], ["5", "selection.k"]]


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("pool: [1\n", 2, "expected ',' or ']'"),
        ("pool:\n\tk: 1\n", 2, "cannot start any token"),
        ("a: 1\n b: 2\n", 2, "mapping values are not allowed here"),
        ("storage: a\n---\nstorage: b\n", 2, "expected a single document"),
        ("storage: *nowhere\n", 1, "undefined alias 'nowhere'"),
        ("storage: !!python/object:os.system x\n", 1, "could not determine a constructor"),
        ("x: 1\n? [a]\n: 1\n", 2, "unhashable key"),
        ("storage: 2024-13-45\n", None, "month must be in 1..12"),
        ("storage: \x07\n", None, "special characters are not allowed"),
    ],
)
def test_a_yaml_error_is_clear(tmp_path: Path, text: str, line: int | None, says: str) -> None:
    (error,) = refused(tmp_path, text)
    assert error.startswith(f"{line}: not valid YAML: " if line else " not valid YAML: ") and says in error


@pytest.mark.parametrize("text", ["- a\n", "text\n", "7\n", "[]", "false", "''"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    (error,) = refused(tmp_path, text)
    assert "must be a mapping of settings" in error


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes("storage: é".encode("latin-1"))
    for path in (tmp_path / "missing.yaml", tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(InputError, match="cannot be read") as error:
            load_settings(path)
        assert str(path) in str(error.value)


@pytest.mark.parametrize(("storage", "wanted"), [("out", "here/out"), ("../out", "out"), ("~/out", "home/out")])
def test_paths_start_at_the_settings_file(
    tmp_path: Path, storage: str, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    settings = load(tmp_path / "here", f"storage: {storage}")
    assert settings.base == tmp_path / "here"
    assert settings.storage_path == tmp_path / wanted


def test_settings_do_not_change(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        load(tmp_path, "").selection.k = 3  # type: ignore[misc]


def test_the_file_in_force_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SETTINGS_VARIABLE, raising=False)
    assert settings_path() == tmp_path / "curation.yaml"
    monkeypatch.setenv(SETTINGS_VARIABLE, "other/settings.yaml")
    assert settings_path() == tmp_path / "other" / "settings.yaml"


def test_a_value_of_another_form_is_told_what_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "curation.yaml"
    path.write_text("ray: {address: localhost}\n")
    with pytest.raises(InputError, match=r"curation\.yaml:1: ray\.address: .*\(host:port of the cluster's head"):
        load_settings(path)


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ("selction: {k: 3}", "selection"),
        ("selection: {stratgy: kmeans}", "strategy"),
        ("pool: {sources: [{pth: a}]}", "path"),
        ("selection: {quotas: [{column: source, cap: {a: 1}}]}", "caps"),
        ("measures: {g_vendi: {modle: x}}", "model"),
        ("selection: {strategy: novelselct}", "novelselect"),
        ("pool: {sources: [{path: a, columns: {promt: q}}]}", "prompt"),
        ("pool: {roles: {narrator: usr}}", "user"),
        ("study: {variants: [{name: a, strategy: kmean}]}", "kmeans"),
    ],
)
def test_the_nearest_setting_or_choice_is_offered(tmp_path: Path, text: str, near: str) -> None:
    (error,) = refused(tmp_path, text)
    assert error.endswith(f"did you mean {near}?")


@pytest.mark.parametrize(
    "text", ["selection: {zzz: 1}", "basis: 3", "selection: {strategy: zzz}", "embedding: {dtype: 3}"]
)
def test_nothing_is_offered_where_nothing_is_near(tmp_path: Path, text: str) -> None:
    (error,) = refused(tmp_path, text)
    assert "did you mean" not in error
