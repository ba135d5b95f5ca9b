"""One prefix of an S3 bucket as a store of files that are either complete or missing.

Belongs here: listing, reading, writing, deleting and verifying objects. Does not: which files a curation has, a local
copy of them (`mirror`).

boto3 repeats what fails temporarily: requests, and parts of large transfers. The SHA-256 of the content is stored with
each object, so that nothing is sent twice.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from io import BufferedRandom, BufferedReader, BytesIO
from pathlib import Path
from threading import Lock
from typing import Any

from novelsum_dagster.common.errors import InputError
from novelsum_dagster.common.files import is_name, replacing
from novelsum_dagster.remote.faults import Patience, code_of, in_words
from novelsum_dagster.settings import S3, S3Place

PART_BYTES = 8 << 20
"""Larger files are sent and fetched in parts of this size."""
_SHA256 = "sha256"
"""Name of an object's metadata field with its SHA-256."""
_MISSING = ("404", "NoSuchKey")
"""Error codes of requests for an object that does not exist."""
_File = BufferedRandom | BufferedReader | BytesIO


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


class _WrongContentError(Exception):
    """The content does not have its SHA-256, or changed while it was read."""


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
            try:
                head = self._client.head_object(**self._object(name))
            except ClientError as error:
                if code_of(error) in _MISSING:
                    return None
                raise
        return RemoteFile(
            head["ContentLength"], head["ETag"].strip('"'), head["LastModified"], head["Metadata"].get(_SHA256)
        )

    def read(self, name: str) -> bytes | None:
        """Return the content of a small object; None if it does not exist.

        The content is checked against the stored SHA-256, if there is one.
        """
        from botocore.exceptions import ClientError

        content = BytesIO()
        with self._explained(name, "be read"):
            try:
                self._fetch(name, content)
            except ClientError as error:
                if code_of(error) in _MISSING:
                    return None
                raise
        return content.getvalue()

    def write(self, name: str, data: bytes) -> None:
        """Write a small object in one request: a reader sees the old content or the new."""
        metadata = {_SHA256: hashlib.sha256(data).hexdigest()}
        with self._explained(name, "be written"):
            self._client.put_object(**self._object(name), Body=data, Metadata=metadata)

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
        with replacing(path) as temporary, temporary.open("r+b") as file, self._explained(name, "be read"):
            self._fetch(name, file, sha256)

    def _fetch(self, name: str, file: _File, sha256: str | None = None) -> None:
        """Download an object into an empty file, and verify it."""
        from s3transfer.exceptions import S3DownloadFailedError

        for _ in range(2):  # Once, it may have been replaced meanwhile; twice is no coincidence.
            wanted = sha256 or self._client.head_object(**self._object(name))["Metadata"].get(_SHA256)
            file.truncate(0)
            try:
                self._client.download_fileobj(**self._object(name), Fileobj=file, Config=self._transfers())
            except S3DownloadFailedError:  # It was replaced between two parts.
                continue
            if wanted in (None, _digest(file)):
                return
        raise _WrongContentError

    def upload(self, path: Path, name: str, sha256: str | None = None) -> bool:
        """Upload a file as an object, in parts if it is large; return False if the object existed already.

        Args:
            path: of the file.
            name: of the object.
            sha256: that the file must have; default: its current one.
        """
        from botocore.exceptions import ClientError

        # A file that is replaced meanwhile is sent in its old version, which is open.
        with self._explained(name, "be written"), path.open("rb") as file:
            wanted, size = sha256 or _digest(file), os.fstat(file.fileno()).st_size
            if self._has(name, wanted, size):
                return False
            if _digest(file) != wanted:
                raise InputError(f"{path}: is damaged (its SHA-256 differs from the record); delete and rebuild it")
            if size > PART_BYTES:
                self._remove_abandoned(name)
            file.seek(0)
            extra = {"Metadata": {_SHA256: wanted}}
            try:
                self._client.upload_fileobj(file, **self._object(name), ExtraArgs=extra, Config=self._transfers())
            except ClientError as error:
                # The response to a finished upload was lost, and the repeated request did not find it.
                if code_of(error) != "NoSuchUpload" or not self._has(name, wanted, size):
                    raise
            return True

    def _has(self, name: str, sha256: str, size: int) -> bool:
        there = self.stat(name)
        return there is not None and (there.sha256, there.size) == (sha256, size)

    def _transfers(self) -> Any:
        """Return the limits of one transfer."""
        from boto3.s3.transfer import TransferConfig

        return TransferConfig(
            multipart_threshold=PART_BYTES + 1,  # From this size on.
            multipart_chunksize=PART_BYTES,
            max_concurrency=4,
            num_download_attempts=self.patience.attempts,
        )

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
        from s3transfer.exceptions import RetriesExceededError

        try:
            yield
        except _WrongContentError:
            problem, advice = "its SHA-256 differs from the record", "delete it there, then rebuild it"
        except RetriesExceededError:
            problem, advice = "the connection was interrupted repeatedly", "try again later"
        except (ClientError, BotoCoreError) as error:
            problem, advice = in_words(error)
        else:
            return
        server = f" (server {self.s3.endpoint_url})" if self.s3.endpoint_url else ""
        where = f"s3://{self.place.bucket}/{self._key(name)}{server}"
        raise InputError(f"{where} cannot {what}: {problem}; {advice}") from None


def _digest(file: _File) -> str:
    """Return the SHA-256 of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()
