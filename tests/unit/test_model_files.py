"""What a model is loaded from: only files that its hash covers, none of them pickled, none of them elsewhere."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.embedding.encoder import SentenceTransformerEncoder, identify
from novelsum_dagster.embedding.language_model import END
from novelsum_dagster.embedding.model_files import files_hash, model_folder
from novelsum_dagster.settings import Embedding, Training
from novelsum_dagster.study.training import named_model_hash, train_tokenizer
from tests.pools import pairs

COMMIT, LATER = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sentence-transformers model of three modules, the last with weights of its own."""
    from tokenizers import Tokenizer

    folder = tmp_path_factory.mktemp("saved")
    tokenizer = Tokenizer.from_str(train_tokenizer([" ".join(pair) for pair in pairs(20)], 300))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END).save_pretrained(folder / "bert")  # type: ignore[no-untyped-call]
    config = BertConfig(
        vocab_size=300, hidden_size=16, num_attention_heads=2, intermediate_size=16, num_hidden_layers=1
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder / "bert")
    bert = Transformer(str(folder / "bert"))
    SentenceTransformer(modules=[bert, Pooling(16, "mean"), Dense(16, 4)], device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    shutil.copytree(saved, tmp_path / "model")
    return tmp_path / "model"


def _edited(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def _dense(folder: Path) -> Path:
    (found,) = folder.glob("2_*/model.safetensors")
    return found


def _pickle(path: Path) -> None:
    torch.save({"linear.weight": torch.zeros(4, 16), "linear.bias": torch.zeros(4)}, path)


def test_every_file_that_is_loaded_counts_and_so_does_its_name(model: Path) -> None:
    def change(path: Path) -> None:
        path.write_bytes(path.read_bytes() + b" ")

    loaded = ["config.json", "modules.json", "tokenizer.json", "model.safetensors", "1_Pooling/config.json"]
    key = identify(Embedding(model=str(model))).key
    for path in [*(model / name for name in loaded), _dense(model)]:
        whole, before = path.read_bytes(), files_hash(model)
        change(path)
        assert files_hash(model) != before, path
        assert identify(Embedding(model=str(model))).key != key
        path.write_bytes(whole)
        assert files_hash(model) == before
    before = files_hash(model)
    (model / "1_Pooling" / "config.json").rename(model / "1_Pooling" / "other.json")
    assert files_hash(model) != before


def test_the_hash_is_that_of_a_list_as_sha256sum_prints_it(model: Path) -> None:
    names = sorted(path.relative_to(model).as_posix() for path in model.rglob("*.*") if path.suffix != ".md")
    lines = [f"{hashlib.sha256((model / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    assert files_hash(model) == hashlib.sha256("".join(lines).encode()).hexdigest()
    (model / "README.md").write_text("other words")
    (model / ".git").mkdir()
    (model / ".git" / "config.json").write_text("{}")
    assert files_hash(model) == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_pickled_weights_that_would_be_loaded_are_refused(model: Path) -> None:
    _pickle(_dense(model).with_name("pytorch_model.bin"))
    folder = model_folder(str(model), None, "embedding")  # Safetensors stand beside, and are taken.
    _dense(model).unlink()
    # It would be loaded: this is no rule for its own sake.
    assert SentenceTransformer(str(folder), device="cpu", local_files_only=True).encode("text").tolist() == [0] * 4
    for act in (
        lambda: identify(Embedding(model=str(model))),
        lambda: SentenceTransformerEncoder(_at(model), "float32", "cpu"),
    ):
        with pytest.raises(InputError, match=r"has pickled weights, 2_\w+/pytorch_model\.bin, .* delete them"):
            act()
    with pytest.raises(InputError, match=r"training\.model: .* has pickled weights"):
        named_model_hash(Training(model=str(model)))


def _at(model: Path) -> Embedding:
    return Embedding(model=str(model), dtype="float32", max_tokens=32)


def test_safetensors_of_another_name_do_not_stand_for_a_modules_own(model: Path) -> None:
    _pickle(_dense(model).with_name("pytorch_model.bin"))
    _dense(model).rename(_dense(model).with_name("other.safetensors"))
    with pytest.raises(InputError, match="has pickled weights"):
        model_folder(str(model), None, "embedding")


def test_what_a_checkout_of_a_model_has_beside_is_let_be(model: Path) -> None:
    before = files_hash(model)
    (model / "openvino").mkdir()
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "openvino/openvino_model.bin"):
        (model / name).write_bytes(b"x")
    assert files_hash(model_folder(str(model), None, "embedding")) == before


def _module_outside(model: Path) -> None:
    shutil.move(_dense(model).parent, model.parent / "outside")
    (name,) = (module["path"] for module in json.loads((model / "modules.json").read_text()) if module["idx"] == 2)
    _edited(model / "modules.json", f'"{name}"', '"../outside"')


def _hidden_module(model: Path) -> None:
    name = _dense(model).parent.name
    _dense(model).parent.rename(model / f".{name}")
    _edited(model / "modules.json", f'"{name}"', f'".{name}"')


def _linked_module(model: Path) -> None:
    folder = _dense(model).parent
    shutil.move(folder, model.parent / "outside")
    folder.symlink_to(model.parent / "outside")


def _shard_outside(model: Path) -> None:
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "/outside/x.safetensors"}}))


def _route_outside(model: Path) -> None:
    (model / "router_config.json").write_text(json.dumps({"types": {"../outside": "x"}, "structure": {}}))


def _adapter(model: Path) -> None:
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "some/model"}))


def _damaged(model: Path) -> None:
    (model / "modules.json").write_text("[{")


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (_module_outside, r"names '\.\./outside' in modules\.json"),
        (_hidden_module, r"names '\.2_\w+' in modules\.json"),
        (_linked_module, "has a link to another folder, 2_"),
        (_shard_outside, r"names '/outside/x\.safetensors' in model\.safetensors\.index\.json"),
        (_route_outside, r"names '\.\./outside' in router_config\.json"),
        (_adapter, r"is an adapter \(adapter_config\.json\)"),
        (_damaged, r"has a damaged file, modules\.json"),
    ],
)
def test_a_model_is_loaded_from_its_folder_alone(model: Path, act: Callable[[Path], None], says: str) -> None:
    model_folder(str(model), None, "embedding")
    act(model)
    with pytest.raises(InputError, match=says):
        model_folder(str(model), None, "embedding")


class Hub(ThreadingHTTPServer):
    """A hub on this machine with one model, `some/model`, whose commits are folders."""

    daemon_threads = True

    def __init__(self, commits: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.commits = commits
        self.sent: list[str] = []


class Page(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        for commit, folder in self.server.commits.items():
            if path == f"/api/models/some/model/tree/{commit}":
                files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
                listed = [
                    {
                        "type": "file",
                        "path": str(file.relative_to(folder)),
                        "size": file.stat().st_size,
                        "oid": _id(file),
                    }
                    for file in files
                ]
                return self._send(json.dumps(listed).encode(), {"Content-Type": "application/json"})
            file = folder / path.removeprefix(f"/some/model/resolve/{commit}/")
            if path.startswith(f"/some/model/resolve/{commit}/") and file.is_file():
                self.server.sent.append(f"{commit}/{file.relative_to(folder)}")
                return self._send(file.read_bytes(), {"ETag": f'"{_id(file)}"', "X-Repo-Commit": commit})
        self.send_response(404)
        self.send_header("X-Error-Code", "RevisionNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()
        return None

    def _send(self, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(200)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _id(file: Path) -> str:
    return hashlib.sha1(file.read_bytes(), usedforsecurity=False).hexdigest()


@pytest.fixture
def hub(model: Path, tmp_path: Path) -> Iterator[Hub]:
    later = tmp_path / "later"
    shutil.copytree(model, later)
    whole = _dense(model).read_bytes()
    _dense(later).write_bytes(whole[:-4] + whole[:4])  # Another last weight.
    _pickle(model / "pytorch_model.bin")
    (model / "README.md").write_text("words")
    with Hub({COMMIT: model, LATER: later}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _with_hub(hub: Hub, cache: Path, program: str, *arguments: str) -> str:
    """Run a program for which the hub is this one: its client reads the address when it is imported."""
    address = f"http://127.0.0.1:{hub.server_port}"
    surroundings = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    surroundings.pop("HF_HUB_OFFLINE", None)
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(
        command, env=surroundings, capture_output=True, text=True, timeout=300, check=False,
        cwd=Path(__file__).resolve().parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


_EMBED = """
import json, sys
from dataclasses import asdict
from pathlib import Path
from novelsum_dagster.embedding.encoder import identify
from novelsum_dagster.embedding.store import embed
from novelsum_dagster.settings import Embedding
settings = Embedding(model="some/model", revision=sys.argv[2], dtype="float32", max_tokens=32)
vectors = embed(Path(sys.argv[1]), settings, ["0" * 32], ["a text"], "pool", device="cpu")
print(json.dumps({**asdict(identify(settings)), "key": identify(settings).key, "vectors": vectors.key}))
"""


@pytest.mark.slow
def test_a_hub_model_is_fetched_at_its_commit_without_pickles_and_its_files_are_in_its_key(
    hub: Hub, model: Path, tmp_path: Path
) -> None:
    found = json.loads(_with_hub(hub, tmp_path / "cache", _EMBED, str(tmp_path / "out"), COMMIT))
    assert (found["revision"], found["files"]) == (COMMIT, files_hash(model))
    fetched = {name.removeprefix(f"{COMMIT}/") for name in hub.sent}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "README.md"}
    kept = json.loads((tmp_path / "out" / "vectors" / found["key"] / "model.json").read_text())
    assert (kept["name"], kept["revision"], kept["files"]) == ("some/model", COMMIT, files_hash(model))
    # A hub that says the same of other files: their vectors have a folder of their own.
    hub.commits[COMMIT] = hub.commits[LATER]
    other = json.loads(_with_hub(hub, tmp_path / "cache2", _EMBED, str(tmp_path / "out"), COMMIT))
    assert other["revision"] == COMMIT and other["key"] != found["key"] and other["vectors"] != found["vectors"]


def test_a_commit_that_the_hub_does_not_have_is_named(hub: Hub, tmp_path: Path) -> None:
    program = (
        "import sys; from novelsum_dagster.embedding.model_files import model_folder\n"
        "from novelsum_dagster.common.errors import InputError\n"
        "try: model_folder('some/model', sys.argv[1], 'embedding')\n"
        "except InputError as error: print(error)"
    )
    said = _with_hub(hub, tmp_path / "cache", program, "c" * 40)
    assert said.startswith(f"embedding.model: some/model at {'c' * 40} cannot be fetched from the hub: ")
