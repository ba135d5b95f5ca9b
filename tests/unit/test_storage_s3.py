"""Storage on S3, against a real server on loopback and through faults: what arrives is whole, or the error is plain."""

import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from novelsum_dagster.artifacts.provenance import StoredFile
from novelsum_dagster.common.errors import InputError
from novelsum_dagster.remote.faults import Patience
from novelsum_dagster.remote.lock import StorageLock
from novelsum_dagster.remote.mirror import Mirror, mirror_of
from novelsum_dagster.remote.s3 import Remote
from novelsum_dagster.settings import S3, S3Place, Settings, load_settings
from tests.s3 import BUCKET, FAULTS, HASTY, PASSWORD, QUICK, USER, FaultProxy, Server, free_port

ODD_NAMES = [
    "ünï/名 前.txt",
    "a b+c%d&e?f#g'h\"i.json",
    "x=1;y=$@:,!*().bin",
    "emo😀",
    "tab\there",
    "new\nline",
    "back\\slash",
    "..hidden",
    "<x>|^~`{}[]",
    "é\u00a0 ",
    "%2e%2e/x",
    "n" * 200,
]


def content(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def stored(data: bytes) -> StoredFile:
    return StoredFile(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def written(root: Path, files: dict[str, bytes]) -> dict[str, StoredFile]:
    """Write files to a folder; return what is recorded of them."""
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return {name: stored(data) for name, data in files.items()}


def read(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def message(error: "pytest.ExceptionInfo[InputError]") -> str:
    """Return an error's message; see that no secret is in it, nor in anything that Python would print with it."""
    printed = "".join(traceback.format_exception(error.value))
    assert PASSWORD not in printed and USER not in printed
    text = str(error.value)
    assert "\n" not in text and text.endswith(tuple("abcdefghijklmnopqrstuvwxyz)"))
    return text


# --- Objects


def test_a_small_object_is_written_read_replaced_and_deleted(s3: Server) -> None:
    remote = s3.remote()
    assert remote.read("assets/x.json") is None and remote.stat("assets/x.json") is None
    remote.write("assets/x.json", b"one")
    remote.write("assets/x.json", b"two!")
    assert remote.read("assets/x.json") == b"two!"
    (kept,) = remote.files().items()
    assert (kept[0], kept[1].size, kept[1].etag) == ("assets/x.json", 4, hashlib.md5(b"two!").hexdigest())
    remote.delete("assets/x.json")
    remote.delete("assets/x.json")
    assert remote.files() == {}


@pytest.mark.parametrize("size", [0, 1, (8 << 20) + 1, 20 << 20])
def test_a_file_of_any_size_comes_back_as_it_was(s3: Server, tmp_path: Path, size: int) -> None:
    data = content(size)
    (tmp_path / "in").write_bytes(data)
    remote = s3.remote()
    assert remote.upload(tmp_path / "in", "pool/samples.parquet", stored(data).sha256)
    assert not remote.upload(tmp_path / "in", "pool/samples.parquet", stored(data).sha256)
    assert not remote.upload(tmp_path / "in", "pool/samples.parquet")
    remote.download("pool/samples.parquet", tmp_path / "out" / "deep", stored(data).sha256)
    assert read(tmp_path / "out") == {"deep": data}
    there = remote.stat("pool/samples.parquet")
    assert there and (there.size, there.sha256) == (size, stored(data).sha256)


@pytest.mark.parametrize("prefix", ["", "a", "a b/é+%"])
def test_odd_names_come_back_as_they_were(s3: Server, tmp_path: Path, prefix: str) -> None:
    remote = Remote(S3Place(BUCKET, prefix), S3(endpoint_url=s3.endpoint), QUICK)
    folder = f"odd of {s3.prefix.partition('/')[0]}"
    files = {f"{folder}/{name}": name.encode() for name in ODD_NAMES}
    mirror = Mirror(tmp_path / "one", remote)
    record = written(tmp_path / "one", files)
    assert mirror.publish(record) == len(files)
    assert set(remote.files(f"{folder}/")) == set(files)
    other = Mirror(tmp_path / "two", remote)
    assert other.fetch(record) == len(files) and read(tmp_path / "two") == files
    assert other.get_folder(folder) == 0


def test_a_name_never_leaves_the_folder(s3: Server, tmp_path: Path) -> None:
    remote, mirror = s3.remote(), Mirror(tmp_path, s3.remote())
    (tmp_path / "f").write_bytes(b"x")
    for name in ("../x", "a/../../x", "/etc/x", "a//b", "", "a/", ".", "a\0b"):
        for act in (
            lambda name: remote.read(name),
            lambda name: remote.write(name, b"x"),
            lambda name: remote.upload(tmp_path / "f", name),
            lambda name: mirror.get(name),
            lambda name: mirror.fetch({name: stored(b"x")}),
            lambda name: mirror.publish({name: stored(b"x")}),
        ):
            with pytest.raises(InputError, match="cannot be the name of a stored file"):
                act(name)


def test_what_does_not_fit_in_one_answer_is_listed(s3: Server) -> None:
    remote, names = s3.remote(), {f"vectors/{number:04}.npy" for number in range(130)}
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: remote.write(name, b"x"), names))
    remote.write("vectors.json", b"x")
    assert set(remote.files("vectors/")) == set(remote.files("vectors/", page=50)) == names
    assert set(remote.files(page=1)) == {*names, "vectors.json"}


# --- The mirror


def test_a_mirror_elsewhere_gets_what_was_published(s3: Server, tmp_path: Path) -> None:
    files = {"pool/snapshot=1/samples.parquet": content(300_000), "vectors/m/1.npy": content(100, 1)}
    here, there = Mirror(tmp_path / "here", s3.remote()), Mirror(tmp_path / "there", s3.remote())
    record = written(here.root, files)
    assert (here.publish(record), here.publish(record)) == (2, 0)
    assert (there.fetch(record), there.fetch(record)) == (2, 0)
    assert read(there.root) == files
    (there.root / "vectors/m/1.npy").write_bytes(content(100, 2))  # Damaged, of the same length.
    (there.root / "pool/snapshot=1/samples.parquet").unlink()
    assert there.fetch(record) == 2 and read(there.root) == files


def test_what_names_other_files_is_sent_last(s3: Server, faulty: FaultProxy, tmp_path: Path) -> None:
    names = ["assets/a.json", "provenance/a/1.json", "runs/r.json", "pool/p", "checks/c.jsonl", "selections/s"]
    mirror = Mirror(tmp_path, s3.remote(HASTY, faulty.endpoint))
    record = written(tmp_path, {name: name.encode() for name in names})
    faulty.fault, faulty.rate = "error", 1.0
    faulty.only = lambda method, path: method == "PUT" and "checks" in path
    with pytest.raises(InputError, match=r"checks/c\.jsonl"):
        mirror.publish(record)
    assert set(s3.remote().files()) == {"pool/p", "selections/s", "provenance/a/1.json"}
    faulty.fault = None
    assert mirror.publish(record) == 3
    assert set(s3.remote().files()) == set(names)


def test_small_files_that_change_are_put_and_got(s3: Server, tmp_path: Path) -> None:
    here, there = Mirror(tmp_path / "here", s3.remote()), Mirror(tmp_path / "there", s3.remote())
    assert not there.get("assets/x.json")
    for text in (b"1", b"2"):
        written(here.root, {"assets/x.json": text})
        assert here.put("assets/x.json") == 1
        assert there.get("assets/x.json") and read(there.root) == {"assets/x.json": text}
    with pytest.raises(InputError, match=r"assets/none\.json: is missing, so it cannot be sent to s3://"):
        here.put("assets/none.json")


def test_a_folder_is_put_and_got_as_a_whole(s3: Server, tmp_path: Path) -> None:
    here, there = Mirror(tmp_path / "here", s3.remote()), Mirror(tmp_path / "there", s3.remote())
    files = {f"runs/{number}.json": str(number).encode() for number in range(5)}
    files["runs/large"] = content(9 << 20)  # In parts: its ETag is no MD5.
    written(here.root, {**files, "runs/.tmp": b"", "assets/x.json": b""})
    assert (here.put_folder("runs"), here.put_folder("runs")) == (6, 0)
    assert (there.get_folder("runs"), there.get_folder("runs/")) == (6, 0)
    assert read(there.root) == files
    (here.root / "runs/3.json").write_bytes(b"4")
    assert (here.put_folder("runs"), there.get_folder("runs")) == (1, 1)
    assert here.put_folder("nothing") == there.get_folder("nothing") == 0


def test_a_damaged_local_file_is_not_published(s3: Server, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path, s3.remote())
    for size in (10, 9 << 20):
        record = written(tmp_path, {"pool/x": content(size)})
        (tmp_path / "pool/x").write_bytes(content(size, 1))
        with pytest.raises(InputError, match=r"pool/x: is damaged .* delete and rebuild it"):
            mirror.publish(record)
    assert s3.remote().files() == {}


def test_a_damaged_object_is_refused(s3: Server, tmp_path: Path) -> None:
    data = content(1000)
    mirror = Mirror(tmp_path / "here", s3.remote())
    record = written(mirror.root, {"pool/x": data})
    mirror.publish(record)
    s3.client.put_object(
        Bucket=BUCKET, Key=f"{s3.prefix}/pool/x", Body=content(1000, 1), Metadata={"sha256": stored(data).sha256}
    )
    there = Mirror(tmp_path / "there", s3.remote())
    (there.root / "pool").mkdir(parents=True)
    (there.root / "pool/x").write_bytes(b"old")
    for act in (lambda: there.fetch(record), lambda: there.get("pool/x"), lambda: there.remote.read("pool/x")):
        with pytest.raises(InputError) as error:
            act()
        assert "pool/x" in message(error) and "its SHA-256 differs from the record; delete it" in message(error)
    assert read(there.root) == {"pool/x": b"old"}


def test_a_file_that_is_nowhere_is_named(s3: Server, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"s3://curations/of .*/pool/x .*cannot be read: there is no such object"):
        Mirror(tmp_path, s3.remote()).fetch({"pool/x": stored(b"x"), "pool/y": stored(b"y")})
    assert read(tmp_path) == {}


# --- Kills and faults

UPLOAD = """
import sys
from pathlib import Path
from novelsum_dagster.settings import S3, S3Place
from novelsum_dagster.remote.s3 import Remote
path, bucket, prefix, endpoint = sys.argv[1:]
Remote(S3Place(bucket, prefix), S3(endpoint_url=endpoint)).upload(Path(path), "pool/x")
"""


def test_an_upload_that_was_killed_is_made_good_by_the_next(s3: Server, faulty: FaultProxy, tmp_path: Path) -> None:
    data = content(20 << 20)
    (tmp_path / "x").write_bytes(data)
    faulty.fault, faulty.rate = "stall", 1.0
    faulty.only = lambda method, path: method == "PUT" and "partNumber=3" in path
    command = [sys.executable, "-c", UPLOAD, str(tmp_path / "x"), BUCKET, s3.prefix, faulty.endpoint]
    with subprocess.Popen(command) as process:
        assert faulty.reached.wait(60)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    listing: dict[str, Any] = {"Bucket": BUCKET, "Prefix": f"{s3.prefix}/pool/x"}
    assert s3.remote().files() == {} and len(s3.client.list_multipart_uploads(**listing)["Uploads"]) == 1
    patience = Patience(abandoned_seconds=0)
    assert s3.remote(patience).upload(tmp_path / "x", "pool/x", stored(data).sha256)
    assert not s3.client.list_multipart_uploads(**listing).get("Uploads")
    s3.remote().download("pool/x", tmp_path / "y", stored(data).sha256)
    assert (tmp_path / "y").read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_faults_in_a_fifth_of_the_requests_do_no_harm(
    s3: Server, faulty: FaultProxy, tmp_path: Path, fault: str
) -> None:
    files = {f"pool/{number}.parquet": content(40_000 + number, number) for number in range(10)}
    files["pool/large"] = content(17 << 20)
    here = Mirror(tmp_path / "here", s3.remote(QUICK, faulty.endpoint))
    there = Mirror(tmp_path / "there", s3.remote(QUICK, faulty.endpoint))
    record = written(here.root, files)
    faulty.fault, faulty.rate = fault, 0.2
    here.publish(record)
    here.put("pool/0.parquet")
    assert set(there.remote.files()) == set(files)
    there.fetch(record)
    assert there.get("pool/1.parquet")
    assert read(there.root) == files
    assert faulty.faults >= 5
    for name, file in record.items():
        kept = s3.remote().stat(name)
        assert kept and (kept.size, kept.sha256) == (file.bytes, file.sha256)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("reset", "the server kept closing the connection; try again later"),
        ("error", "the server answers 500"),
        ("slow_down", r"the server answers 503( \(SlowDown\))? again and again; try again later"),
        ("timeout", "the server stopped answering; try again later"),
        ("truncated", "(was interrupted repeatedly|kept closing the connection|the server answers 500)"),
    ],
)
def test_faults_in_every_request_end_in_a_plain_error(
    s3: Server, faulty: FaultProxy, tmp_path: Path, fault: str, says: str
) -> None:
    record = written(tmp_path, {"pool/x": content(1000), "pool/y": content(9 << 20)})
    remote = s3.remote(HASTY, faulty.endpoint)
    remote.connect()
    remote.write("pool/there", content(5000))
    faulty.fault, faulty.rate = fault, 1.0
    mirror, other = Mirror(tmp_path, remote), Mirror(tmp_path / "other", remote)
    for act in (
        lambda: mirror.publish(record),
        lambda: remote.download("pool/there", tmp_path / "there"),
        lambda: remote.read("pool/there"),
        lambda: remote.write("pool/there", b"x"),
        lambda: remote.files(),
        lambda: other.get("pool/there"),
        lambda: Remote(remote.place, remote.s3, HASTY).connect(),
    ):
        with pytest.raises(InputError, match=says) as error:
            act()
        assert f"s3://{BUCKET}/{s3.prefix}" in message(error) and faulty.endpoint in message(error)
    assert set(read(tmp_path)) == {"pool/x", "pool/y"}  # No temporary file is left.


def test_a_download_that_breaks_off_is_repeated(s3: Server, faulty: FaultProxy, tmp_path: Path) -> None:
    data = content(6 << 20)
    (tmp_path / "in").write_bytes(data)
    s3.remote().upload(tmp_path / "in", "x")
    remote = s3.remote(QUICK, faulty.endpoint)
    remote.connect()
    asked = []
    faulty.fault, faulty.rate = "truncated", 1.0
    faulty.only = lambda method, path: method == "GET" and (asked.append(path) or len(asked) <= 3)  # type: ignore[func-returns-value]
    remote.download("x", tmp_path / "out", stored(data).sha256)
    assert (tmp_path / "out").read_bytes() == data and len(asked) == 4


def test_an_object_that_is_replaced_while_it_is_read_comes_whole(
    s3: Server, faulty: FaultProxy, tmp_path: Path
) -> None:
    old, new = content(3 << 20), content(2 << 20, 1)
    s3.remote().write("x", old)
    remote = s3.remote(QUICK, faulty.endpoint)
    remote.connect()

    def replaced(method: str, path: str) -> bool:
        if method == "GET" and faulty.faults == 0:
            return True
        s3.remote().write("x", new)
        return False

    faulty.fault, faulty.rate, faulty.only = "truncated", 1.0, replaced
    remote.download("x", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == new


def test_a_lost_answer_to_a_finished_upload_does_no_harm(s3: Server, faulty: FaultProxy, tmp_path: Path) -> None:
    data = content(9 << 20)
    (tmp_path / "in").write_bytes(data)
    asked = []
    faulty.fault, faulty.rate = "truncated", 1.0
    faulty.only = lambda method, path: method == "POST" and "uploadId" in path and (asked.append(1) or len(asked) == 1)  # type: ignore[func-returns-value]
    assert s3.remote(QUICK, faulty.endpoint).upload(tmp_path / "in", "x", stored(data).sha256)
    s3.remote().download("x", tmp_path / "out", stored(data).sha256)
    assert len(asked) >= 2 and s3.client.list_multipart_uploads(Bucket=BUCKET, Prefix=s3.prefix).get("Uploads") is None


def test_a_file_that_is_replaced_while_it_is_sent_arrives_as_it_was(
    s3: Server, faulty: FaultProxy, tmp_path: Path
) -> None:
    old, new = content(17 << 20), content(18 << 20, 1)
    (tmp_path / "x").write_bytes(old)
    mirror = Mirror(tmp_path, s3.remote(QUICK, faulty.endpoint))

    def replaced(method: str, path: str) -> bool:
        if "partNumber=1" in path:
            (tmp_path / "new").write_bytes(new)
            (tmp_path / "new").replace(tmp_path / "x")
        return False

    faulty.fault, faulty.rate, faulty.only = "error", 1.0, replaced
    mirror.put("x")
    assert (tmp_path / "x").read_bytes() == new
    s3.remote().download("x", tmp_path / "y")
    assert (tmp_path / "y").read_bytes() == old
    assert mirror.get("x") and (tmp_path / "x").read_bytes() == old


# --- What a person has set wrongly


def test_an_unknown_bucket_is_named(s3: Server) -> None:
    remote = s3.remote(bucket="no-such-bucket")
    for act in (lambda: remote.stat("x"), lambda: remote.files(), lambda: remote.write("x", b"")):
        with pytest.raises(InputError) as error:
            act()
        text = message(error)
        assert "s3://no-such-bucket/" in text and "there is no such bucket; create it, or correct storage" in text


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "planted-wrong"}, "does not accept the AWS credentials in force; set AWS_ACCESS_"),
        ({"AWS_ACCESS_KEY_ID": "planted-other"}, "does not accept the AWS credentials in force; set AWS_ACCESS_"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "there are no AWS credentials; set AWS_ACCESS_"),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "the AWS credentials are incomplete; set AWS_ACCESS_KEY_ID and"),
        ({"AWS_PROFILE": "nobody"}, "AWS_PROFILE names a profile that does not exist"),
    ],
)
def test_wrong_credentials_are_told_in_plain_words(
    s3: Server, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], says: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(InputError) as error:
        s3.remote().stat("x")
    assert says in message(error) and "planted" not in "".join(traceback.format_exception(error.value))


def test_an_endpoint_where_nothing_answers_is_named(s3: Server) -> None:
    endpoint = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(InputError) as error:
        s3.remote(HASTY, endpoint).files()
    assert endpoint in message(error) and "nothing answers at this address; check that s3.endpoint_url" in message(
        error
    )


def test_a_profile_serves_as_well(s3: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"[work]\naws_access_key_id={USER}\naws_secret_access_key={PASSWORD}\n")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "keys"))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert s3.remote().files() == {}


# --- Settings


def settings(folder: Path, text: str) -> Settings:
    (folder / "curation.yaml").write_text(text)
    return load_settings(folder / "curation.yaml")


@pytest.mark.parametrize(
    ("text", "folder", "place"),
    [
        ("storage: s3://bucket/a/b", "bucket/a/b", "s3://bucket/a/b"),
        ("storage: s3://my.bucket-1/a/", "my.bucket-1/a", "s3://my.bucket-1/a"),
        ("storage: s3://bucket", "bucket", "s3://bucket"),
        ("storage: s3://bucket/a\ns3: {endpoint_url: 'http://127.0.0.1:9000/'}", "127.0.0.1_9000/bucket/a", "s3://bucket/a"),
    ],
)  # fmt: skip
def test_storage_on_s3_has_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, folder: str, place: str
) -> None:
    monkeypatch.setenv("NOVELSUM_CACHE", str(tmp_path / "cache"))
    found = settings(tmp_path, text)
    assert found.storage_path == tmp_path / "cache" / "storage" / folder
    mirror = mirror_of(found)
    assert mirror and (str(found.s3_place), str(mirror.remote.place), mirror.root) == (place, place, found.storage_path)
    assert mirror_of(found).remote is mirror.remote  # type: ignore[union-attr]
    monkeypatch.delenv("NOVELSUM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert found.storage_path == tmp_path / "user" / "novelsum" / "storage" / folder


def test_storage_in_a_folder_has_no_mirror(tmp_path: Path) -> None:
    for folder in ("out", "./s3/x", "a:b", "/tmp/s3", "."):
        found = settings(tmp_path, f"storage: '{folder}'")
        assert found.s3_place is None and mirror_of(found) is None
        assert found.storage_path == (tmp_path / folder).resolve()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("storage: gs://bucket/x", "1: storage: must be a folder or s3://bucket/prefix"),
        ("storage: S3://bucket/x", "1: storage: must be a folder or s3://bucket/prefix"),
        ("storage: s3:/bucket/x", "1: storage: must be a folder or s3://bucket/prefix"),
        ("storage: s3://", "1: storage: s3:// must be followed by a bucket's name"),
        ("storage: s3://Bucket/x", "1: storage: s3:// must be followed by a bucket's name"),
        ("storage: s3://AKIAX:planted@bucket/x", "1: storage: s3:// must be followed by a bucket's name"),
        ("storage: s3://bucket//x", "1: storage: the prefix after the bucket must have no empty part"),
        ("storage: s3://bucket/a/../x", "1: storage: the prefix after the bucket must have no empty part"),
        ("s3: {endpoint_url: 'http://AKIAX:planted@host'}", "1: s3.endpoint_url: "),
        ("s3: {endpoint_url: localhost:9000}", "1: s3.endpoint_url: "),
        ("s3:\n  access_key: planted", "2: s3.access_key: no such setting"),
    ],
)
def test_mistakes_in_storage_are_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(InputError) as error:
        settings(tmp_path, text)
    printed = "".join(traceback.format_exception(error.value))
    assert f"curation.yaml:{says}" in str(error.value) and "planted" not in printed and "AKIAX" not in printed


def test_the_definitions_do_without_the_libraries_for_s3() -> None:
    program = (
        "import sys, novelsum_dagster.remote.mirror, novelsum_dagster.remote.lock\n"
        "sys.exit(bool({'boto3', 'botocore', 'dagster', 'dagster_aws', 'filelock'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# --- One run at a time

HOLD = """
import sys
from pathlib import Path
from novelsum_dagster.settings import S3, S3Place
from novelsum_dagster.remote.lock import StorageLock
from novelsum_dagster.remote.s3 import Remote
root, run, endpoint, bucket, prefix = sys.argv[1:]
remote = Remote(S3Place(bucket, prefix), S3(endpoint_url=endpoint)) if endpoint else None
lock = StorageLock(Path(root), remote, seconds=3)
lock.acquire(run)
print("held", flush=True)
sys.stdin.readline()
"""


def holder(root: Path, run: str, s3: Server | None) -> "subprocess.Popen[str]":
    """Return a process that holds a folder until its input ends."""
    where = [s3.endpoint, BUCKET, s3.prefix] if s3 else ["", "", ""]
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root), run, *where], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_two_runs_do_not_have_a_local_folder_at_once(tmp_path: Path) -> None:
    process = holder(tmp_path, "run-a", None)
    with process:
        with pytest.raises(InputError) as error:
            StorageLock(tmp_path).acquire("run-b")
        text = message(error)
        assert f"{tmp_path} is in use by run run-a on {os.uname().nodename} (process {process.pid}, since 20" in text
        with StorageLock(tmp_path).held("run-a"):  # Another process of the same run.
            process.communicate("\n")
            with pytest.raises(InputError, match="is in use by run run-a"):
                StorageLock(tmp_path).acquire("run-b")
    with StorageLock(tmp_path).held("run-b") as lock:
        lock.require()
    with pytest.raises(InputError, match="is not held by this process"):
        lock.require()
    assert list((tmp_path / "locks").glob("*.json")) == []


def test_a_killed_holder_does_not_keep_a_local_folder(tmp_path: Path) -> None:
    with holder(tmp_path, "run-a", None) as process:
        process.kill()
    with StorageLock(tmp_path).held("run-b"):
        pass


@pytest.mark.slow
def test_two_runs_do_not_have_a_bucket_at_once(s3: Server, tmp_path: Path) -> None:
    process = holder(tmp_path / "a", "run-a", s3)
    with process:
        time.sleep(3.5)  # Longer than a lease: it is renewed.
        with pytest.raises(InputError) as error:
            StorageLock(tmp_path / "b", s3.remote(), seconds=3).acquire("run-b")
        assert f"s3://{BUCKET}/{s3.prefix} is in use by run run-a on {os.uname().nodename} (process" in message(error)
        assert list(s3.remote().files("locks/")) and len(s3.remote().files("locks/")) == 1
        with StorageLock(tmp_path / "b", s3.remote(), seconds=3).held("run-a"):  # The same run, on another machine.
            process.communicate("\n")
            with pytest.raises(InputError, match="is in use by run run-a"):
                StorageLock(tmp_path / "c", s3.remote(), seconds=3).acquire("run-b")
    with StorageLock(tmp_path / "c", s3.remote(), seconds=3).held("run-b") as lock:
        lock.require()
    assert s3.remote().files() == {}


def test_a_killed_holder_does_not_keep_a_bucket_on_its_own_machine(s3: Server, tmp_path: Path) -> None:
    with holder(tmp_path / "a", "run-a", s3) as process:
        process.kill()
    with pytest.raises(InputError, match=r"is in use by run run-a .* try again in 60 s, when its lease has expired"):
        StorageLock(tmp_path / "b", s3.remote()).acquire("run-b")
    with StorageLock(tmp_path / "a", s3.remote()).held("run-b"):
        assert len(s3.remote().files("locks/")) == 1
        assert len(list((tmp_path / "a" / "locks").glob("*.json"))) == 1


@pytest.mark.parametrize("lease", ["a", '{"run_id": "r", "host": "h", "pid": 1, "token": "t", "since": "2026-01-01"}'])
@pytest.mark.slow
def test_a_lease_that_is_not_renewed_runs_out(s3: Server, tmp_path: Path, lease: str) -> None:
    remote = s3.remote()
    remote.write("locks/t.json", lease.encode())
    lock = StorageLock(tmp_path, remote, seconds=1.5)
    with pytest.raises(InputError, match=r"is in use by run .* try again in 1\.5 s"):
        lock.acquire("run-b")
    time.sleep(1.6)
    with lock.held("run-b"):
        assert "locks/t.json" not in remote.files() and len(remote.files()) == 1


@pytest.mark.slow
def test_of_many_that_ask_at_once_no_two_hold(s3: Server, tmp_path: Path) -> None:
    holding, most, refused, barrier = set(), [0], [], threading.Barrier(4)

    def ask(number: int) -> None:
        lock = StorageLock(tmp_path / str(number), s3.remote())
        for _ in range(2):
            barrier.wait(60)
            try:
                with lock.held(f"run-{number}"):
                    holding.add(number)
                    most[0] = max(most[0], len(holding))
                    time.sleep(0.3)
                    holding.discard(number)
            except InputError as error:
                refused.append(str(error))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert most == [1] and all("is in use by run run-" in text for text in refused)
    assert s3.remote().files() == {}


@pytest.mark.slow
def test_a_holder_whose_lease_ran_out_learns_it(s3: Server, faulty: FaultProxy, tmp_path: Path) -> None:
    slow = StorageLock(tmp_path / "a", s3.remote(QUICK, faulty.endpoint), seconds=3)
    slow.acquire("run-a")
    slow.require()
    faulty.fault, faulty.rate = "error", 1.0
    time.sleep(3.5)
    with pytest.raises(InputError, match=r"the lease of run run-a was not renewed in 3 s, so another run may have"):
        slow.require()
    with StorageLock(tmp_path / "b", s3.remote(), seconds=3).held("run-b") as other:
        faulty.fault = None
        time.sleep(4)  # The first may renew again, and finds the other.
        with pytest.raises(InputError, match="another run may have begun"):
            slow.require()
        other.require()
    slow.release()
    assert s3.remote().files() == {}
