"""The boto3 client for S3: time limits, connections, retries.

Belongs here: the configuration of a client. Does not: requests (`s3`). Imported inside functions only: boto3 is slow to
load.
"""

import random
from functools import partial
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ConnectionClosedError

_CONNECTIONS = 40
"""Connections kept open at once."""
_OF_OBJECT = ("ETag", "ContentLength", "LastModified")
_HEADERS = {"HeadObject": _OF_OBJECT, "GetObject": _OF_OBJECT, "PutObject": ("ETag",), "UploadPart": ("ETag",)}
"""Fields of every complete response, by request. The HTTP library accepts a response that ended within its headers."""


def new_client(
    *,
    endpoint_url: str | None,
    region: str | None,
    path_style: bool,
    attempts: int,
    connect_seconds: float,
    read_seconds: float,
) -> Any:
    """Return a client; credentials come from the environment, a profile or a role.

    Args:
        endpoint_url: of a server that is not Amazon's.
        region: of the bucket; None takes that of the environment.
        path_style: name the bucket in the path, not in the host.
        attempts: requests for one answer at most.
        connect_seconds: the longest wait for a connection.
        read_seconds: the longest wait for the next bytes.
    """
    config = Config(
        connect_timeout=connect_seconds,
        read_timeout=read_seconds,
        max_pool_connections=_CONNECTIONS,
        retries={"mode": "standard", "total_max_attempts": attempts},
        # With a signed body, the server refuses one that was changed in transit, over plain HTTP too.
        s3={"addressing_style": "path" if path_style else "auto", "payload_signing_enabled": True},
    )
    client = boto3.session.Session().client("s3", region_name=region, endpoint_url=endpoint_url, config=config)
    client.meta.events.register_first("needs-retry.s3", partial(_again_if_cut, attempts))
    return client


def _again_if_cut(
    most: int, response: tuple[Any, dict[str, Any]] | None, operation: Any, attempts: int, **_: Any
) -> float | None:
    """Return the seconds to wait before repeating a request whose response ended within its headers, else None.

    botocore's own rules apply afterwards.

    Raises:
        ConnectionClosedError: if no attempt is left.
    """
    if response is None or response[0].status_code >= 300:
        return None
    if all(header in response[1] for header in _HEADERS.get(operation.name, ())):
        return None
    if attempts >= most:
        raise ConnectionClosedError(endpoint_url=response[0].url)
    return random.uniform(0, 2 ** (attempts - 1))  # noqa: S311
