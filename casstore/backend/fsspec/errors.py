"""One mapping from what fsspec's file systems raise to casstore's errors, without secrets.

Their client libraries (botocore, azure-core, aiohttp, …) are optional, so their exceptions are recognised by HTTP status
and by the names that each driver lists in `errors`, instead of being imported.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import TYPE_CHECKING

from casstore.backend.base import Throttled
from casstore.backend.fsspec.redaction import redact
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

_SKEWED = re.compile(r"RequestTimeTooSkewed|difference between the request time")  # S3; s3fs drops the code

_NONE: Mapping[str, type[BackendError]] = MappingProxyType({})


class RangeNotSatisfiable(BackendError):
    """The server refuses a range that begins after the object's end."""


@contextmanager
def translated(
    doing: str,
    secrets: tuple[str, ...] = (),
    *,
    kinds: Mapping[str, type[BackendError]] = _NONE,
) -> Iterator[None]:
    """Turn every exception but casstore's own into a BackendError.

    `doing` completes the sentence "Cannot …"; `kinds` are a driver's `errors`.
    """
    try:
        yield
    except CasstoreError:
        raise
    except Exception as error:  # client libraries have no common base class
        # Invariant 11: below the cache every failure is raised, as one of casstore's errors.
        result = from_fs_error(error, doing, secrets, kinds=kinds)
        if redact(str(error), secrets) != str(error):
            # A chained traceback would print the secrets that the message leaves out.
            raise result from None
        raise result from error


def from_fs_error(
    error: Exception,
    doing: str,
    secrets: tuple[str, ...] = (),
    *,
    kinds: Mapping[str, type[BackendError]] = _NONE,
) -> BackendError:
    """Return the casstore error that says what `error` means."""
    status = _http_status(error)
    names = [kind.__name__ for kind in type(error).__mro__]
    kind = next((kinds[name] for name in (_code(error), *names) if name in kinds), None)
    # The first line is enough; Azure's client library appends the whole answer.
    said = str(error).strip().partition("\n")[0]
    detail = redact(f"{type(error).__name__}: {said}", secrets)
    if isinstance(error, FileNotFoundError) or status == 404 or kind is ObjectNotFound:
        return ObjectNotFound(f"Cannot {doing}: it is not there.")
    if isinstance(error, FileExistsError) or status == 412 or kind is ObjectExists:
        return ObjectExists(f"Cannot {doing}: it is there already, and nothing is overwritten.")
    if status == 416 or kind is RangeNotSatisfiable:
        return RangeNotSatisfiable(f"Cannot {doing}: the range begins after the end.")
    if status in _THROTTLED or kind is Throttled:
        return Throttled(f"Cannot {doing}: {detail}", retry_after=_retry_after(error))
    if isinstance(error, PermissionError) or status in (401, 403) or kind is AccessDenied:
        advice = "Check the credentials and their permissions."
        if "HostKeyNotVerifiable" in names:
            advice = "Connect to it with ssh once, and compare its key with the one that its owner gives you (~/.ssh/known_hosts)."
        elif _SKEWED.search(said):
            advice = "Set this machine's clock: signed requests carry the time."
        return AccessDenied(f"Cannot {doing}: {detail}. {advice}")
    if (
        status in _UNAVAILABLE
        or kind is BackendUnavailable
        or isinstance(error, (ConnectionError, EOFError, TimeoutError))
    ):
        return BackendUnavailable(f"Cannot {doing}: {detail}")
    if isinstance(error, NotImplementedError):
        return BackendError(f"Cannot {doing}: this kind of storage does not support it.")
    # A negative number is of the resolver of host names (gaierror), not of the system.
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return from_os_error(OSError(error.errno, os.strerror(error.errno)), doing)
    return BackendError(f"Cannot {doing}: {detail}")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what caused it: client libraries wrap what the server answered."""
    while error is not None:
        yield error
        error = error.__cause__


def _code(error: BaseException) -> str:
    """Return the code that S3 answered with; "" where there is none."""
    for item in _causes(error):
        response = getattr(item, "response", None)
        if isinstance(response, dict):  # botocore
            return str(response.get("Error", {}).get("Code", ""))
    return ""


def _http_status(error: BaseException) -> int | None:
    """Return the HTTP status that an exception of a client library carries."""
    for item in _causes(error):
        response = getattr(item, "response", None)
        if isinstance(response, dict):  # botocore
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return status if isinstance(status, int) else None
        for name in ("status_code", "status", "code"):  # azure-core, aiohttp, gcsfs
            value = getattr(item, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
            if isinstance(value, str) and value.isdigit():
                return int(value)
    return None


def _retry_after(error: BaseException) -> float | None:
    """Return what the server asked for in seconds; None for a date, too: the policy's own pauses will do."""
    for item in _causes(error):
        response = getattr(item, "response", None)
        if isinstance(response, dict):  # botocore
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(response, "headers", None) or getattr(item, "headers", None)
        with suppress(KeyError, TypeError, ValueError):
            return float(headers["retry-after"])
    return None
