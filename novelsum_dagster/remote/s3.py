"""One prefix of an S3 bucket as a store of files that are either complete or missing.

Belongs here: listing, reading, writing and deleting objects, with verification and retries. Does not: which files a
curation has, a local copy of them (`mirror`).

A request that fails temporarily is repeated by botocore; a transfer with short or wrong content is repeated here. The
SHA-256 of the content is stored with each object, so that nothing is sent twice.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BufferedReader
from pathlib import Path
from threading import Lock
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import file_hash, is_name, replacing
from novelsum_dagster.remote.faults import HEADERS, Patience, code_of, in_words, status_of
from novelsum_dagster.settings import S3, S3Place

MULTIPART_BYTES = 8 << 20
"""Larger files are sent in parts of this size."""
_CHUNK = 1 << 20
_SHA256 = "sha256"
"""Name of an object's metadata field with its SHA-256."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """An object.

    Attributes:
        size: in bytes.
        etag: of the server, without quotes.
        modified: when it was written, by the server's clock.
        sha256: stored with it; None if it was not requested, or another program wrote the object.
    """

    size: int
    etag: str
    modified: datetime
    sha256: str | None = None


class _BrokenOffError(Exception):
    """The connection ended in the middle of an object's content, which botocore does not retry by itself."""


class _WrongContentError(Exception):
    """The content has the right length but the wrong SHA-256."""


class Remote:
    """A bucket and a prefix. The server is not contacted before the first use. Thread-safe.

    Every method raises `InputError`, with place, problem and remedy, once its attempts are used up.

    Args:
        place: the bucket and the prefix.
        s3: the connection settings.
        patience: retry and timeout limits.
    """

    def __init__(self, place: S3Place, s3: S3, patience: Patience | None = None) -> None:
        self.place = place
        self.s3 = s3
        self.patience = patience or Patience()
        self._lock = Lock()
        self._made: Any = None

    def connect(self) -> None:
        """Check that the bucket exists and may be used."""
        with self._explained("", "be reached"):
            _ = self._client

    def files(self, under: str = "", page: int = 1000) -> dict[str, RemoteFile]:
        """Return the objects whose names begin with `under`, by name, `page` per request.

        Names that cannot be file names, e.g. with a part `..`, are left out.
        """
        found = {}
        with self._explained(under, "be listed"):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self.place.bucket, Prefix=self._key(under), PaginationConfig={"PageSize": page}
            )
            for one in pages:
                for item in one.get("Contents", []):
                    name = item["Key"].removeprefix(self._key(""))
                    if is_name(name):
                        found[name] = RemoteFile(item["Size"], item["ETag"].strip('"'), item["LastModified"])
        return found

    def stat(self, name: str) -> RemoteFile | None:
        """Return an object's metadata; None if it does not exist."""
        from botocore.exceptions import ClientError

        with self._explained(name, "be read"):
            client = self._client
            try:
                head = client.head_object(**self._object(name))
            except ClientError as error:
                if status_of(error) == 404:
                    return None
                raise
            _require_whole("HeadObject", head)
        return RemoteFile(
            head["ContentLength"], head["ETag"].strip('"'), head["LastModified"], head["Metadata"].get(_SHA256)
        )

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object; None if it does not exist.

        The content is checked against the stored SHA-256, if there is one.
        """
        from botocore.exceptions import ClientError

        with self._explained(name, "be read"):
            client = self._client
            for number in self.patience.tries():
                try:
                    answer = client.get_object(**self._object(name))
                    _require_whole("GetObject", answer)
                    data = b"".join(_content(answer))
                    _require(hashlib.sha256(data).hexdigest(), answer["Metadata"].get(_SHA256))
                except ClientError as error:
                    if code_of(error) == "NoSuchKey":
                        return None
                    raise
                except (_BrokenOffError, _WrongContentError):
                    if number == self.patience.attempts - 1:
                        raise
                else:
                    return data
        raise AssertionError  # The last attempt has returned or raised.

    def write(self, name: str, data: bytes) -> None:
        """Write a small object in one request: a reader sees the old content or the new."""
        with self._explained(name, "be written"):
            self._put(name, data, hashlib.sha256(data).hexdigest())

    def delete(self, name: str) -> None:
        """Delete an object, if it exists."""
        with self._explained(name, "be deleted"):
            self._client.delete_object(**self._object(name))

    def download(self, name: str, path: Path, sha256: str | None = None) -> None:
        """Download an object to `path`, complete and verified, or leave `path` unchanged.

        Args:
            name: of the object.
            path: of the file.
            sha256: that it must have; default: the one stored with it, if any.
        """
        with replacing(path) as temporary, self._explained(name, "be read"):
            wrong = 0
            transfer = _Download(self._client, self._object(name), temporary, sha256)
            for number in self.patience.tries():
                try:
                    return transfer.go_on()
                except (_BrokenOffError, _WrongContentError) as error:
                    wrong += isinstance(error, _WrongContentError)
                    if wrong == 2 or number == self.patience.attempts - 1:  # Wrong twice: not by chance.
                        raise

    def upload(self, path: Path, name: str, sha256: str | None = None) -> bool:
        """Upload a file as an object, in parts if it is large; return False if the object existed already.

        Args:
            path: of the file.
            name: of the object.
            sha256: that the file must have; default: its current one.
        """
        from botocore.exceptions import ClientError

        with self._explained(name, "be written"):
            for number in self.patience.tries():
                # A file that is replaced meanwhile is sent in its old version, which is open.
                with path.open("rb") as file:
                    wanted, there = sha256 or _digest(file), self.stat(name)
                    size = os.fstat(file.fileno()).st_size
                    if there is not None and (there.sha256, there.size) == (wanted, size):
                        return number > 0
                    if _digest(file) != wanted:
                        raise InputError(
                            f"{path}: is damaged (its SHA-256 differs from the record); delete and rebuild it"
                        )
                    try:
                        self._send(file, size, name, wanted)
                        return True
                    except ClientError as error:
                        # The response to a finished upload was lost and the request repeated, or it was removed.
                        if code_of(error) != "NoSuchUpload" or number == self.patience.attempts - 1:
                            raise
        raise AssertionError

    def _send(self, file: BufferedReader, size: int, name: str, sha256: str) -> None:
        if size <= MULTIPART_BYTES:
            self._put(name, file.read(), sha256)
            return
        from s3transfer.manager import TransferConfig, TransferManager

        self._remove_abandoned(name)
        config = TransferConfig(
            multipart_threshold=MULTIPART_BYTES,
            multipart_chunksize=MULTIPART_BYTES,
            max_request_concurrency=4,
            max_in_memory_upload_chunks=4,
        )
        with TransferManager(self._client, config) as transfers:
            extra = {"Metadata": {_SHA256: sha256}}
            try:
                transfers.upload(file, self.place.bucket, self._key(name), extra_args=extra).result()
            except KeyError:  # The response to a part had no ETag: it was cut off.
                raise _BrokenOffError from None

    def _put(self, name: str, data: bytes, sha256: str) -> None:
        answer = self._client.put_object(**self._object(name), Body=data, Metadata={_SHA256: sha256})
        _require_whole("PutObject", answer)

    def _remove_abandoned(self, name: str) -> None:
        """Remove parts of this object left by killed processes: they are not listed, but take space."""
        from botocore.exceptions import ClientError

        key, before = self._key(name), datetime.now(UTC) - timedelta(seconds=self.patience.abandoned_seconds)
        try:
            uploads = self._client.list_multipart_uploads(Bucket=self.place.bucket, Prefix=key).get("Uploads", [])
            for upload in uploads:
                if upload["Key"] == key and upload["Initiated"] <= before:
                    self._client.abort_multipart_upload(**self._object(name), UploadId=upload["UploadId"])
        except ClientError:  # Only cleaning up; some servers and policies do not allow it.
            return

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = self._new_client()
            return self._made

    def _new_client(self) -> Any:
        """Return a client that has reached the bucket: later responses do not reveal a missing bucket or wrong keys."""
        from novelsum_dagster.remote.client import new_client

        path_style = self.s3.path_style
        client = new_client(
            endpoint_url=self.s3.endpoint_url,
            region=self.s3.region,
            path_style=self.s3.endpoint_url is not None if path_style is None else path_style,
            attempts=self.patience.attempts,
            connect_seconds=self.patience.connect_seconds,
            read_seconds=self.patience.read_seconds,
        )
        client.list_objects_v2(Bucket=self.place.bucket, Prefix=self._key(""), MaxKeys=1)
        return client

    def _key(self, name: str) -> str:
        return f"{self.place.prefix}/{name}" if self.place.prefix else name

    def _object(self, name: str) -> dict[str, str]:
        if not is_name(name):
            raise InputError(f"{name!r}: cannot be the name of a stored file")
        return {"Bucket": self.place.bucket, "Key": self._key(name)}

    @contextmanager
    def _explained(self, name: str, what: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except _WrongContentError:
            problem, advice = "its SHA-256 differs from the record", "delete it there, then rebuild it"
        except _BrokenOffError:
            problem, advice = "the connection was interrupted repeatedly", "try again later"
        except (ClientError, BotoCoreError) as error:
            problem, advice = in_words(error)
        else:
            return
        server = f" (server {self.s3.endpoint_url})" if self.s3.endpoint_url else ""
        where = f"s3://{self.place.bucket}/{self._key(name)}{server}"
        raise InputError(f"{where} cannot {what}: {problem}; {advice}") from None


class _Download:
    """A resumable transfer of one object into a file."""

    def __init__(self, client: Any, place: dict[str, str], file: Path, sha256: str | None) -> None:
        self._client = client
        self._place = place
        self._file = file
        self._sha256 = sha256
        self._kept: str | None = None
        self._etag: str | None = None
        self._total: int | None = None

    def go_on(self) -> None:
        """Fetch the missing part and verify the file; discard it if its content is wrong."""
        from botocore.exceptions import ClientError

        start = self._file.stat().st_size
        try:
            if self._total is None or start < self._total:
                self._fetch(start)
            _require(file_hash(self._file), self._sha256 or self._kept)
        except _WrongContentError:
            self._forget()
            raise
        except ClientError as error:
            if code_of(error) != "PreconditionFailed" and status_of(error) != 412:
                raise
            self._forget()
            raise _WrongContentError from None

    def _fetch(self, start: int) -> None:
        there = {"Range": f"bytes={start}-", "IfMatch": self._etag} if start and self._etag else {}
        answer = self._client.get_object(**self._place, **there)
        _require_whole("GetObject", answer)
        if not there:
            self._etag, self._total = answer["ETag"], answer["ContentLength"]
            self._kept = answer["Metadata"].get(_SHA256)
        with self._file.open("r+b") as file:
            file.truncate(start if there else 0)
            file.seek(start if there else 0)
            for chunk in _content(answer):
                file.write(chunk)

    def _forget(self) -> None:
        self._file.write_bytes(b"")
        self._etag = self._total = None


def _require(found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise _WrongContentError


def _digest(file: BufferedReader) -> str:
    """Return the SHA-256 of an open file, and rewind it."""
    file.seek(0)
    found = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return found


def _require_whole(request: str, answer: dict[str, Any]) -> None:
    if any(header not in answer for header in HEADERS[request]):
        raise _BrokenOffError


def _content(answer: Any) -> Iterator[bytes]:
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    try:
        yield from answer["Body"].iter_chunks(_CHUNK)
    except (HTTPClientError, IncompleteReadError):
        raise _BrokenOffError from None
