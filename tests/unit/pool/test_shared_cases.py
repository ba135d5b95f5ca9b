"""Small files that trainers document, or that go wrong in practice, read as they are."""

from pathlib import Path

import pytest

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.pool.ingest import build_snapshot
from novelsum_dagster.pool.snapshot import PoolSnapshot
from novelsum_dagster.settings import NearDuplicates, Pool, Source
from tests.unit.pool.building import words

CASES = Path(__file__).resolve().parents[4] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")

WHOLE = [
    "a01_sharegpt_bard_bing", "a02_developer_role", "a03_empty_system", "a04_conversations_role_content",
    "a05_messages_from_value", "a06_ultrachat_prompt_and_messages", "a07_magpie_instruction_and_conversations",
    "a08_content_parts", "a09_tool_calls_null_content", "a10_trl_conversational_prompt_completion",
    "a11_question_answer", "a14_conversation_lmsys", "a16_conversations_json_string", "a19_toolrole_variants",
    "a20_alpaca_history_lost", "a21_toplevel_system_lost", "a23_dolly_context", "a25_ends_with_user_empty_gpt",
    "a28_images_differ", "c04_long_system", "b14_jsonl_is_list", "b15_jsonl_is_pretty_list", "b17_json_wrapped_data",
    "b18_json_pretty_objects", "o01_empty_struct", "o06_dict_keys_by_row", "p01_types", "p02_toolcalls",
]  # fmt: skip


def build(folder: Path, source: Source, **limits: object) -> PoolSnapshot:
    """Read one source of the cases."""
    rule = NearDuplicates(by="minhash", drop=True)
    pool = Pool.model_validate({"sources": (source,), "near_duplicates": rule, **limits})
    return build_snapshot(pool, CASES, folder, words)


@pytest.mark.parametrize("name", WHOLE)
def test_every_record_is_a_sample_of_its_own(tmp_path: Path, name: str) -> None:
    (path,) = CASES.glob(f"{name}.*")
    snapshot = build(tmp_path, Source(path=path.name), near_duplicates=NearDuplicates(by="off"))
    assert (snapshot.kept, snapshot.duplicates, snapshot.rejects, snapshot.unread) == (24, 0, 0, 0)
    assert snapshot.files[0].complete


def test_a_long_system_prompt_makes_no_near_duplicates(tmp_path: Path) -> None:
    assert build(tmp_path, Source(path="c04_long_system.jsonl")).kept == 24


def test_a_broken_element_costs_one_record(tmp_path: Path) -> None:
    snapshot = build(tmp_path, Source(path="b20_json_list_one_broken.json"), max_reject_fraction=0.5)
    assert (snapshot.read, snapshot.rejects, snapshot.files[0].complete) == (24, 1, True)


def test_long_samples_are_let_in_by_the_limit(tmp_path: Path) -> None:
    assert build(tmp_path, Source(path="d03_long_context.jsonl"), max_characters=10**6).kept == 2


@pytest.mark.parametrize(
    ("name", "says"), [("b24_lfs_pointer", "git lfs pull"), ("b25_html_page", "HTML"), ("b27_really_gz", "gzip")]
)
def test_what_is_no_data_is_named(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        build(tmp_path, Source(path=f"{name}.jsonl"))


def test_brackets_saved_folders_and_configurations_are_read(tmp_path: Path) -> None:
    assert build(tmp_path, Source(path="data[1]/*.jsonl")).read > 0
    saved = build(tmp_path, Source(path="hf_saved"))
    assert saved.read > 0 and saved.rejects == 0
    with pytest.raises(InputError, match="config"):
        build(tmp_path, Source(dataset="hf_cfg"))


def test_a_dataset_of_a_folder_is_read_as_its_file(tmp_path: Path) -> None:
    off = NearDuplicates(by="off")
    as_dataset = build(tmp_path, Source(dataset="hf_jsonl"), near_duplicates=off)
    as_file = build(tmp_path, Source(path="hf_jsonl/train.jsonl"), near_duplicates=off)
    ids = [snapshot.samples(tmp_path, ["id"])["id"].to_pylist() for snapshot in (as_dataset, as_file)]
    assert ids[0] == ids[1] and len(ids[0]) > 1
