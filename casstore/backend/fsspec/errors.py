"""One mapping from what fsspec's file systems raise to casstore's errors, without secrets.

Their client libraries (botocore, azure-core, aiohttp, …) are optional, so their exceptions are recognised by class
name and HTTP status instead of being imported.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from casstore.backend.base import Throttled
from casstore.backend.oserrors import from_os_error
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    CasstoreError,
    ObjectExists,
    ObjectNotFound,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_THROTTLED = {429, 503}
_UNAVAILABLE = {408, 409, 500, 502, 504}  # 409: S3 and Azure ask to repeat a conditional write

_CODES = {
    "NoSuchKey": 404,
    "NoSuchBucket": 404,
    "AccessDenied": 403,
    "InvalidAccessKeyId": 403,
    "SignatureDoesNotMatch": 403,
    "ExpiredToken": 403,
    "SlowDown": 503,
    "RequestLimitExceeded": 503,
    "ThrottlingException": 503,
    "PreconditionFailed": 412,
    "InvalidRange": 416,
}

_UNAVAILABLE_NAMES = {
    "TimeoutError",
    "EndpointConnectionError",
    "ConnectionClosedError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "IncompleteReadError",
    "ResponseStreamingError",
    "ServiceRequestError",
    "ServiceResponseError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ServerTimeoutError",
    "SSHException",
    "DisconnectError",
    "SFTPConnectionLost",
    "SFTPNoConnection",
    "EOFError",
}
_REFUSED_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ClientAuthenticationError",
    "CredentialUnavailableError",
    "DefaultCredentialsError",
    "RefreshError",
    "AuthenticationException",
    "SFTPPermissionDenied",
    "PermissionDenied",
    "HostKeyNotVerifiable",
}
_ABSENT_NAMES = {"ResourceNotFoundError", "SFTPNoSuchFile"}
_TAKEN_NAMES = {"ResourceExistsError", "SFTPFileAlreadyExists"}

_SKEWED = re.compile(r"RequestTimeTooSkewed|difference between the request time")  # S3; s3fs drops the code

_SECRET_OPTION = re.compile(
    r"secret|passw|passphrase|token|credential|connection_string|sas|sig|key|auth|cookie", re.IGNORECASE
)
# The name of something secret: a whole word, or the end of one ("AccountKey", "aws_secret_access_key"),
# but not the name of an error ("NoCredentialsError") or of something else ("tokenizer", "design").
_NAME = (
    r"(?:(?i:secret|token|passw(?:or)?d|passphrase|credentials?|signature"
    r"|(?:account|access|shared|api|secret|private)[_-]?key)|(?<![A-Za-z])(?i:sig)(?![A-Za-z]))"
    r"(?![a-z])(?!\w{0,40}(?i:Error|Exception|Failure|Expired|Invalid|NotFound|Missing))[\w-]{0,40}"
)
_END = r"\s&;,'\""
# Prose may follow a colon; a secret has a digit in it, or is longer than a word.
_VALUE = rf"(?:(?=[^{_END}]*\d)[^{_END}]{{6,}}|[^{_END}]{{20,}})"
_SECRET_TEXT = (
    re.compile(r"(://)[^/\s@:]*:[^/\s@]+(?=@)"),
    re.compile(
        r"((?i:authorization)['\"]?\s*[:=]\s*['\"]?"
        r"(?i:(?:bearer|basic|digest|negotiate|token|sharedkey(?:lite)?|aws4-hmac-sha256)\s+))[^\s,'\"]+"
    ),
    re.compile(rf"((?i:authorization)['\"]?\s*[:=]\s*['\"]?){_VALUE}"),
    re.compile(r"(\b(?i:bearer)\s+)[A-Za-z0-9._~+/-]{16,}=*"),
    re.compile(rf"({_NAME}['\"]?\s?=\s?['\"]?)[^{_END}]+"),
    re.compile(rf"({_NAME}['\"]\s*:\s*(['\"]))(?:(?!\2).)+"),
    re.compile(rf"((?<=[_-]){_NAME}:\s*['\"]?)[^{_END}]+"),  # a header's name, not prose
    re.compile(rf"({_NAME}:\s*['\"]?){_VALUE}"),
)


class RangeNotSatisfiable(BackendError):
    """The server refuses a range that begins after the object's end."""


def secret_values(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts in storage options, nested ones included, that must not be shown."""
    found: list[str] = []
    for name, value in options.items():
        if isinstance(value, dict):
            found.extend(secret_values(value))
        elif isinstance(value, (str, bytes)) and _SECRET_OPTION.search(name):
            found.append(value if isinstance(value, str) else value.decode("latin-1"))
    return tuple(sorted((text for text in found if len(text) > 3), key=len, reverse=True))


def redact(text: str, secrets: tuple[str, ...] = ()) -> str:
    """Return `text` with `secrets`, and whatever looks like one, replaced by "…"."""
    for secret in secrets:
        text = text.replace(secret, "…")
    for pattern in _SECRET_TEXT:
        text = pattern.sub(r"\1…", text)
    return text


@contextmanager
def translated(
    doing: str, secrets: tuple[str, ...] = (), *, passing: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn every exception but casstore's own and those `passing` into a BackendError.

    `doing` completes the sentence "Cannot …".
    """
    untouched: tuple[type[Exception], ...] = (CasstoreError, *passing)
    try:
        yield
    except untouched:
        raise
    except Exception as error:  # client libraries have no common base class
        # Invariant 11: below the cache every failure is raised, as one of casstore's errors.
        result = from_fs_error(error, doing, secrets)
        if redact(str(error), secrets) != str(error):
            # A chained traceback would print the secrets that the message leaves out.
            raise result from None
        raise result from error


def from_fs_error(error: Exception, doing: str, secrets: tuple[str, ...] = ()) -> BackendError:
    """Return the casstore error that says what `error` means."""
    names = {kind.__name__ for kind in type(error).__mro__}
    status = http_status(error)
    # The first line is enough; Azure's client library appends the whole answer.
    said = str(error).strip().partition("\n")[0]
    detail = redact(f"{type(error).__name__}: {said}", secrets)
    if isinstance(error, FileNotFoundError) or status == 404 or names & _ABSENT_NAMES:
        return ObjectNotFound(f"Cannot {doing}: it is not there.")
    if isinstance(error, FileExistsError) or status == 412 or names & _TAKEN_NAMES:
        return ObjectExists(f"Cannot {doing}: it is there already, and nothing is overwritten.")
    if status == 416:
        return RangeNotSatisfiable(f"Cannot {doing}: the range begins after the end.")
    if status in _THROTTLED:
        return Throttled(f"Cannot {doing}: {detail}", retry_after=_retry_after(error))
    if isinstance(error, PermissionError) or status in (401, 403) or names & _REFUSED_NAMES:
        advice = "Check the credentials and their permissions."
        if "HostKeyNotVerifiable" in names:
            advice = "Connect to it with ssh once, and compare its key with the one that its owner gives you (~/.ssh/known_hosts)."
        elif _SKEWED.search(said):
            advice = "Set this machine's clock: signed requests carry the time."
        return AccessDenied(f"Cannot {doing}: {detail}. {advice}")
    if status in _UNAVAILABLE or names & _UNAVAILABLE_NAMES or isinstance(error, (ConnectionError, EOFError)):
        return BackendUnavailable(f"Cannot {doing}: {detail}")
    if isinstance(error, NotImplementedError):
        return BackendError(f"Cannot {doing}: this kind of storage does not support it.")
    if isinstance(error, OSError) and error.errno:
        return from_os_error(OSError(error.errno, os.strerror(error.errno)), doing)
    return BackendError(f"Cannot {doing}: {detail}")


def http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of a client library carries."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore
        code = response.get("Error", {}).get("Code", "")
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return _CODES.get(code, status if isinstance(status, int) else None)
    for name in ("status_code", "status", "code"):  # azure-core, aiohttp, gcsfs
        value = getattr(error, name, None)
        if isinstance(value, int) and 400 <= value < 600:
            return value
        if isinstance(value, str) and value.isdigit():
            return int(value)
    cause = error.__cause__
    return http_status(cause) if cause is not None else None


def _retry_after(error: BaseException) -> float | None:
    """Return what the server asked for in seconds, also when the client library wrapped its answer."""
    found = _own_retry_after(error)
    if found is None and error.__cause__ is not None:
        return _retry_after(error.__cause__)
    return found


def _own_retry_after(error: BaseException) -> float | None:
    response = getattr(error, "response", None)
    headers = (
        response.get("ResponseMetadata", {}).get("HTTPHeaders")
        if isinstance(response, dict)
        else getattr(response, "headers", None) or getattr(error, "headers", None)
    )
    try:
        return float(headers["retry-after"]) if headers else None
    except (KeyError, TypeError, ValueError):
        return None  # absent, or a date: the policy's own pauses will do
