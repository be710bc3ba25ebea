from __future__ import annotations

import asyncio
import errno
import socket
import time
import traceback
from types import SimpleNamespace

import pytest

from casstore.backend.base import Throttled
from casstore.backend.fsspec.drivers import DRIVERS
from casstore.backend.fsspec.errors import RangeNotSatisfiable, from_fs_error, translated
from casstore.backend.fsspec.redaction import redact, secret_values
from casstore.backend.oserrors import from_os_error
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ObjectExists,
    ObjectNotFound,
)


@pytest.mark.parametrize(
    ("number", "kind", "retryable", "words"),
    [
        (errno.ENOENT, ObjectNotFound, False, "not there"),
        (errno.EEXIST, ObjectExists, False, "nothing is overwritten"),
        (errno.ENOSPC, BackendError, False, "Free space"),
        (errno.EDQUOT, BackendError, False, "quota"),
        (errno.EROFS, AccessDenied, False, "read-only"),
        (errno.EACCES, AccessDenied, False, "Permission denied"),
        (errno.EPERM, AccessDenied, False, "owner, group and mode"),
        (errno.EIO, BackendUnavailable, True, "Input/output"),
        (errno.ESTALE, BackendUnavailable, True, "Stale"),
        (errno.EMFILE, BackendUnavailable, True, "open files"),
        (errno.ECONNRESET, BackendUnavailable, True, "reset"),
        (errno.EXDEV, BackendError, False, "another file system"),
        (errno.ENOTDIR, BackendError, False, "in the way"),
        (errno.EFBIG, BackendError, False, "too large"),
        (errno.ENAMETOOLONG, BackendError, False, "too long"),
    ],
)
def test_operating_system_errors(number, kind, retryable, words):
    error = from_os_error(OSError(number, None), "write packs/x in file:///s")
    assert type(error) is kind
    assert error.retryable is retryable
    assert str(error).startswith("Cannot write packs/x in file:///s: ")
    assert words in str(error)
    assert not from_os_error(OSError(number, None), "x", retryable=False).retryable


def test_an_os_error_without_a_number():
    assert "out of paper" in str(from_os_error(OSError("out of paper"), "print"))


# The names of all drivers.
KINDS = {name: kind for driver in DRIVERS for name, kind in driver.errors.items()}


def exception(name, base=Exception, **attributes):
    return type(name, (base,), attributes)("it said so")


def botocore(code, status=400, headers=None):
    response = {
        "Error": {"Code": code},
        "ResponseMetadata": {"HTTPStatusCode": status, "HTTPHeaders": headers or {}},
    }
    return exception("ClientError", response=response)


class Response:
    headers = {"retry-after": "7"}  # noqa: RUF012  # never changed


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), ObjectNotFound),
        (FileExistsError(), ObjectExists),
        (PermissionError("x"), AccessDenied),
        (PermissionError(errno.EACCES, "x"), AccessDenied),
        (asyncio.TimeoutError(), BackendUnavailable),
        (TimeoutError(), BackendUnavailable),
        (ConnectionResetError(), BackendUnavailable),
        (EOFError(), BackendUnavailable),
        (OSError(errno.EBUSY, "busy"), BackendUnavailable),
        (OSError(errno.ENOSPC, "full"), BackendError),
        (OSError("plain"), BackendError),
        (NotImplementedError(), BackendError),
        (ValueError("x"), BackendError),
        (botocore("NoSuchKey", 404), ObjectNotFound),
        (botocore("SlowDown", 503), Throttled),
        (botocore("InternalError", 500), BackendUnavailable),
        (botocore("AccessDenied", 403), AccessDenied),
        (botocore("PreconditionFailed", 412), ObjectExists),
        (botocore("ConditionalRequestConflict", 409), BackendUnavailable),
        (botocore("InvalidRange", 416), RangeNotSatisfiable),
        (botocore("EntityTooLarge", 400), BackendError),
        (exception("EndpointConnectionError"), BackendUnavailable),
        (exception("NoCredentialsError"), AccessDenied),
        (exception("ResourceExistsError", status_code=409), ObjectExists),
        (exception("ResourceNotFoundError", status_code=404), ObjectNotFound),
        (exception("HttpResponseError", status_code=503), Throttled),
        (exception("ClientAuthenticationError", status_code=401), AccessDenied),
        (exception("ServiceRequestError"), BackendUnavailable),
        (exception("HttpError", code=429), Throttled),
        (exception("HttpError", code="500"), BackendUnavailable),
        (exception("ClientPayloadError"), BackendUnavailable),
        (exception("SFTPNoSuchFile"), ObjectNotFound),
    ],
)
def test_file_system_errors(error, kind):
    result = from_fs_error(error, "read packs/x", kinds=KINDS)
    assert type(result) is kind
    assert result.retryable is issubclass(kind, BackendUnavailable)
    assert str(result).startswith("Cannot read packs/x: ")


@pytest.mark.parametrize(
    "error",
    [
        PermissionError("The difference between the request time and the current time is too large."),
        type("ClientError", (Exception,), {"response": botocore("RequestTimeTooSkewed", 403).response})(
            "An error occurred (RequestTimeTooSkewed) when calling the GetObject operation"
        ),
    ],
)
def test_a_wrong_clock_is_not_taken_for_wrong_credentials(error):
    result = from_fs_error(error, "read packs/x", kinds=KINDS)
    assert type(result) is AccessDenied
    assert "Set this machine's clock" in str(result)
    assert "credentials" not in str(result)


def test_a_host_name_that_nobody_knows():
    error = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    assert "Name or service not known" in str(from_fs_error(error, "open ftp://host"))


def test_the_cause_may_know_the_status():
    outer = OSError("wrapped")
    outer.__cause__ = botocore("SlowDown", 503, {"retry-after": "11"})
    assert type(from_fs_error(outer, "x")) is Throttled


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (botocore("SlowDown", 503, {"retry-after": "11"}), 11.0),
        (botocore("SlowDown", 503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), None),
        (botocore("SlowDown", 503), None),
        (exception("HttpResponseError", status_code=429, response=Response()), 7.0),
        (exception("HttpResponseError", status_code=429, headers={"retry-after": "3"}), 3.0),
        (exception("HttpResponseError", status_code=429), None),
    ],
)
def test_the_wish_for_a_pause(error, seconds):
    assert from_fs_error(error, "x").retry_after == seconds


@pytest.mark.parametrize(
    "text",
    [
        "sftp://user:SECRET@host/x",
        "https://h/x?sig=SECRET&se=2030",
        "https://h/x?X-Amz-Signature=SECRET",
        "X-Amz-Security-Token: SECRET",
        "DefaultEndpointsProtocol=https;AccountKey=SECRET;x",
        "{'Authorization': 'Bearer SECRET'}",
        "Authorization: Basic SECRET",
        "{'secret': 'SECRET', 'key': 1}",
        '{"token": "SECRET"}',
        "password=SECRET",
        "password: SECRET7",
        "secret_key: abcSECRETabcSECRETabc",
        "{'password': 'two words SECRET', 'x': 1}",
        "aws_secret_access_key = SECRET",
        "X-Amz-Credential=SECRET/2026, SignedHeaders=host",
        "Authorization: AWS4-HMAC-SHA256 Credential=SECRET/x",
        "authorization=SECRET1",
        "bad Bearer abcSECRETabcSECRET==",
        'SecretAccessKey="SECRET"',
        "AccountKey=SECRET==;EndpointSuffix=x",
        "se=1&sig=SECRET&sp=r",
        "api-key: 0123SECRET",
    ],
)
def test_what_looks_like_a_secret_is_not_shown(text):
    assert "SECRET" not in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a/b",
        "abfs://box@account.dfs.core.windows.net/x",
        "no such key",
        "12:30 a@b",
        "NoCredentialsError: Unable to locate credentials",
        "CredentialUnavailableError: No credential was found",
        "PartialCredentialsError: Partial credentials found in env, missing: aws_secret_access_key",
        "InvalidTokenError: AADSTS700016: Application was not found",
        "ExpiredToken: The provided token has expired",
        "SignatureDoesNotMatch: The request signature we calculated does not match",
        "Invalid token: expected ','",
        "Wrong password: try again",
        "the token is missing: provide one",
        "authorization failed for user ann",
        "Authorization: denied",
        "basic authentication is not supported",
        "tokenizer=bert-base-2024",
        "tokenizer: bert-base-2024",
        "max_tokens=4096",
        "design=modern",
        "assignment: 12345678",
        "KeyError: 'token'",
        "getpwuid(): uid not found: 12345",
        "Could not find the bearer token",
    ],
)
def test_the_rest_is_shown(text):
    assert redact(text) == text


def test_a_long_message_takes_no_time():
    for text in ("0" * 100_000, "a-" * 50_000, "token" * 20_000, "secret: " * 10_000):
        started = time.perf_counter()
        redact(text)
        assert time.perf_counter() - started < 2


def test_credentials_that_are_missing_are_told_whole():
    error = type("NoCredentialsError", (Exception,), {})("Unable to locate credentials")
    assert "Unable to locate credentials" in str(from_fs_error(error, "open s3://x"))


def test_secrets_of_storage_options():
    options = {
        "key": "AKIAKEY",
        "secret": "abcdSECRET",
        "client_kwargs": {"aws_session_token": "tokenSECRET", "endpoint_url": "http://x"},
        "account_key": b"bytesSECRET",
        "anon": False,
        "pass": "x",
    }
    secrets = secret_values(options)
    assert set(secrets) == {"AKIAKEY", "abcdSECRET", "tokenSECRET", "bytesSECRET"}
    assert redact("bad abcdSECRET at http://x", secrets) == "bad … at http://x"


def test_secrets_stay_out_of_tracebacks():
    with pytest.raises(BackendError) as caught, translated("read x", ("hunter22",)):
        raise ValueError("login with hunter22 failed")
    shown = "".join(traceback.format_exception(caught.value))
    assert "hunter22" not in str(caught.value)
    assert "ValueError: login with" in str(caught.value)
    assert "ValueError: login with hunter22" not in shown


def test_without_secrets_the_cause_is_kept():
    with pytest.raises(BackendError) as caught, translated("read x"):
        raise ValueError("odd")
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(ConfigError), translated("read x"):
        raise ConfigError("ours")


def test_a_full_disk_says_where_and_what_to_do(tmp_path):
    error = from_os_error(
        OSError(errno.ENOSPC, "No space left on device"),
        "write to x",
        place=str(tmp_path / "not" / "made yet"),
        elsewhere="choose another folder",
    )
    assert f"MiB are free on the file system of {tmp_path})" in str(error)
    assert "Free space there or raise the quota, or choose another folder, then try again" in str(error)
    assert "casstore stats" in str(error)


def test_a_disk_without_room_for_more_files(tmp_path, monkeypatch):
    full = SimpleNamespace(f_files=10, f_favail=0, f_bavail=5, f_frsize=4096)
    monkeypatch.setattr("os.statvfs", lambda _: full)
    error = from_os_error(OSError(errno.ENOSPC, "full"), "write to x", place=str(tmp_path))
    assert "no more files fit on the file system of" in str(error)
