"""A command whose extra is not installed says in one line what to install."""

import sys
from pathlib import Path

import pytest

from novelsum_dagster.cli.explore import page_beside
from novelsum_dagster.cli.main import main
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.extras import require_extra
from novelsum_dagster.engine.engine import engine_of
from novelsum_dagster.settings import Settings
from tests.pools import write_settings


def take_away(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)


def test_what_is_there_is_not_asked_for() -> None:
    require_extra("explore", "novelsum explore", "json", "yaml")


def test_all_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch, "streamlit", "plotly")
    with pytest.raises(InputError, match=r"streamlit and plotly, which are not installed: pip install .*\[explore\]'$"):
        require_extra("explore", "novelsum explore", "streamlit", "plotly")


@pytest.mark.parametrize("missing", ["streamlit", "plotly"])
def test_explore_names_its_extra(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    take_away(monkeypatch, missing)
    monkeypatch.setattr(sys, "argv", ["novelsum", "explore", "--settings", str(write_settings(tmp_path))])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr()
    assert end.value.code == 2 and said.out == ""
    assert said.err == (
        f"novelsum: error: novelsum explore needs {missing}, which is not installed:"
        " pip install 'novelsum-dagster[explore]'\n"
    )


def test_the_ui_goes_without_the_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    take_away(monkeypatch, "streamlit")
    assert page_beside("http://127.0.0.1:8501", 3000) == []
    assert capsys.readouterr().err == (
        "The explore page is not served, so links to it will not work: pip install 'novelsum-dagster[explore]'\n"
    )


def test_the_engine_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    take_away(monkeypatch, "ray")
    with pytest.raises(InputError, match=r"^engine: ray needs ray, which is not installed: pip install .*\[ray\]'$"):
        engine_of(Settings(engine="ray"))


def test_the_definitions_on_ray_name_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOVELSUM_SETTINGS", str(write_settings(tmp_path)))
    take_away(monkeypatch, "dagster_ray")
    monkeypatch.delitem(sys.modules, "novelsum_dagster.definitions_on_ray", raising=False)
    with pytest.raises(InputError, match=r"dagster_ray, which is not installed: pip install .*\[ray\]'$"):
        import novelsum_dagster.definitions_on_ray  # noqa: F401
