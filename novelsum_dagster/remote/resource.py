"""The Dagster resource that makes the client for S3.

Belongs here: what a client is told. Does not: what is asked of S3. Imported inside functions only: it loads Dagster.
"""

import random
from functools import partial
from typing import Any

import boto3
from botocore.config import Config
from dagster_aws.s3 import S3Resource

from novelsum_dagster.remote.faults import HEADERS


class StorageS3Resource(S3Resource):
    """`S3Resource` with time limits, enough connections and a choice of how the bucket is named.

    Credentials come from the environment, a profile or a role; the fields of `S3Resource` for keys stay empty.

    Attributes:
        path_style: name the bucket in the path, not in the host.
        connect_seconds: the longest wait for a connection.
        read_seconds: the longest wait for the next bytes.
        connections: kept open at once.
    """

    path_style: bool = False
    connect_seconds: float = 10
    read_seconds: float = 45
    connections: int = 40

    def get_client(self) -> Any:
        """Return a client; S3Resource's own has neither time limits nor a choice of addresses."""
        config = Config(
            connect_timeout=self.connect_seconds,
            read_timeout=self.read_seconds,
            max_pool_connections=self.connections,
            retries={"mode": "standard", "total_max_attempts": self.max_attempts},
            # Signed, a body that changes on its way is refused by the server, over plain HTTP too.
            s3={"addressing_style": "path" if self.path_style else "auto", "payload_signing_enabled": True},
        )
        session = boto3.session.Session(profile_name=self.profile_name)
        client = session.client("s3", region_name=self.region_name, endpoint_url=self.endpoint_url, config=config)
        client.meta.events.register_first("needs-retry.s3", partial(_again_if_cut, self.max_attempts))
        return client


def _again_if_cut(
    most: int, response: tuple[Any, dict[str, Any]] | None, operation: Any, attempts: int, **_: Any
) -> float | None:
    """Return the seconds to wait before a request is repeated whose answer ended within its headers; else None.

    botocore's own rules are asked next.
    """
    if response is None or attempts >= most or response[0].status_code >= 300:
        return None
    is_cut = any(header not in response[1] for header in HEADERS.get(operation.name, ()))
    return random.uniform(0, 2 ** (attempts - 1)) if is_cut else None  # noqa: S311
