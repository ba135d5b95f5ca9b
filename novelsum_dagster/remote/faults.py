"""Errors of S3: for how long requests are retried, and their messages.

Belongs here: limits, the message and remedy for each error. Does not: the transfers.

No message repeats text of the server or the AWS libraries: responses to a wrong signature contain the signed data.
"""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from botocore.exceptions import ClientError


@dataclass(frozen=True)
class Patience:
    """Retry and timeout limits for S3.

    Attributes:
        attempts: of each request, and of each part of a download that is cut off.
        connect_seconds: the longest wait for a connection.
        read_seconds: the longest wait for the next bytes.
        abandoned_seconds: age from which a multipart upload counts as abandoned by a dead process, and is removed.
    """

    attempts: int = 8
    connect_seconds: float = 10
    read_seconds: float = 45
    abandoned_seconds: float = 86_400


CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role; they are never read "
    "from the settings"
)
_LATER = "try again later; finished work is kept"
_WRONG_KEYS = ("the server does not accept the AWS credentials in force", CREDENTIALS)
_OF_CODE = {
    "InvalidAccessKeyId": _WRONG_KEYS,
    "SignatureDoesNotMatch": _WRONG_KEYS,
    "InvalidToken": _WRONG_KEYS,
    "InvalidClientTokenId": _WRONG_KEYS,
    "ExpiredToken": ("the AWS credentials in force have expired", "renew them (for a profile: log in again)"),
    "TokenRefreshRequired": ("the AWS credentials in force have expired", "renew them"),
    "AccessDenied": (
        "access is denied",
        "these credentials need s3:ListBucket on the bucket, and s3:GetObject, s3:PutObject and s3:DeleteObject in it",
    ),
    "NoSuchBucket": ("there is no such bucket", "create it, or correct storage in the settings"),
    "PermanentRedirect": ("the bucket is in another region", "set s3.region to the bucket's"),
    "AuthorizationHeaderMalformed": ("the bucket is in another region", "set s3.region to the bucket's"),
    "IllegalLocationConstraintException": ("the bucket is in another region", "set s3.region to the bucket's"),
    "RequestTimeTooSkewed": ("this machine's clock differs from the server's", "set the clock"),
    "PreconditionFailed": ("the object changed while it was read", _LATER),
    "NoSuchUpload": ("the upload was removed while it ran", "let one run at a time write here"),
    "KeyTooLongError": ("the name is too long for S3", "shorten the prefix in storage"),
    "QuotaExceeded": ("the store is full", "make room"),
    "XMinioStorageFull": ("the store is full", "make room"),
    "NoSuchKey": ("there is no such object", "rebuild and publish it"),
    "404": ("there is no such object", "rebuild and publish it"),
    "403": (
        "access is denied",
        "check that the AWS credentials in force are right and may list, read and write in this bucket",
    ),
    "301": ("the bucket is in another region", "set s3.region to the bucket's"),
}
_OF_TYPE = {
    "NoCredentialsError": ("there are no AWS credentials", CREDENTIALS),
    "PartialCredentialsError": ("the AWS credentials are incomplete", CREDENTIALS),
    "CredentialRetrievalError": ("the AWS credentials cannot be fetched", CREDENTIALS),
    "ProfileNotFound": ("AWS_PROFILE names a profile that does not exist", "correct it, or create the profile"),
    "ConfigParseError": ("the AWS configuration file cannot be read", "correct it (~/.aws/config)"),
    "EndpointConnectionError": (
        "nothing answers at this address",
        "check that s3.endpoint_url is right, the server runs and the network is up",
    ),
    "ConnectTimeoutError": ("the server cannot be reached", "check s3.endpoint_url and the network"),
    "ReadTimeoutError": ("the server stopped answering", _LATER),
    "ConnectionClosedError": ("the server kept closing the connection", _LATER),
    "SSLError": ("the server's certificate is not accepted", "correct s3.endpoint_url, or set AWS_CA_BUNDLE"),
    "ProxyConnectionError": ("the HTTP proxy cannot be reached", "correct HTTPS_PROXY or NO_PROXY"),
}  # fmt: skip


def code_of(error: "ClientError") -> str:
    """Return the error code of a response, e.g. `NoSuchKey`; its HTTP status if the code is not a word."""
    code = str(error.response.get("Error", {}).get("Code", ""))
    return code if re.fullmatch(r"\w{1,64}", code) else str(status_of(error))


def status_of(error: "ClientError") -> int:
    """Return the HTTP status of a response."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def in_words(error: Exception) -> tuple[str, str]:
    """Return the problem and the remedy."""
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        code, status = code_of(error), status_of(error)
        if code in _OF_CODE:
            return _OF_CODE[code]
        answer = f"the server answers {status} ({code})" if code != str(status) else f"the server answers {status}"
        return (f"{answer} again and again", _LATER) if status >= 500 or status == 429 else (answer, "see its log")
    found = next((_OF_TYPE[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _OF_TYPE), None)
    if found:
        return found
    if "SSO" in type(error).__name__ or "Token" in type(error).__name__:
        return "the AWS login has expired", "log in again"
    return f"the AWS library fails with {type(error).__name__}", "check the AWS configuration"
