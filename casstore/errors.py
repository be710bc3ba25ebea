"""Every error that casstore raises on purpose.

The tree is part of the public interface: callers catch by class, people read the message. A message
says what failed, on what, and what to do about it. Errors that Python has a class for are of that class, too:
`except FileNotFoundError` catches a store or a file that is not there, `except KeyError` a ref or a tensor.
"""

from __future__ import annotations


class CasstoreError(Exception):
    """Base of every error that casstore raises on purpose."""


class BackendError(CasstoreError):
    """The storage underneath failed; `retryable` says whether trying again may help."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class ObjectNotFound(BackendError):
    """No object has this key."""


class ObjectExists(BackendError):
    """An object with this key exists already, and nothing is overwritten (invariant 1)."""


class BackendUnavailable(BackendError):
    """The storage does not answer, or answered that it is overloaded."""

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message, retryable=retryable)


class AccessDenied(BackendError):
    """The storage refuses this operation to this user."""


class IntegrityError(CasstoreError):
    """Stored bytes are damaged. Never a cache miss (invariant 11)."""


class DigestMismatch(IntegrityError):
    """Bytes do not hash to the id that names them.

    `expected` and `actual` are 64 hex digits; `key` names the file or object that holds the bytes.
    """

    def __init__(self, expected: str, actual: str, key: str, advice: str = "") -> None:
        tail = f" {advice}" if advice else ""
        super().__init__(f"{key}: expected BLAKE3 {expected}, found {actual}.{tail}")
        self.expected = expected
        self.actual = actual
        self.key = key


class FormatError(IntegrityError):
    """Bytes do not follow format/README.md."""


class UnsupportedVersion(FormatError):
    """Written by a newer casstore: upgrade to read it. Not damage."""


class MissingObject(IntegrityError):
    """A manifest or layout points at an object that no pack holds."""


class RefNotFound(CasstoreError, KeyError):
    """No ref or model has this name, or several models have ids with this prefix."""

    __str__ = CasstoreError.__str__  # KeyError would show the message in quotes


class ConflictError(CasstoreError):
    """Another writer got there first, or the input changed while it was read."""


class RefConflict(ConflictError):
    """A tag was moved by someone else at the same time, or is forked."""


class NameTaken(ConflictError):
    """The name that an add would give a model by default is another model's: choose one with `ref=`."""


class ConfigError(CasstoreError):
    """An argument, a setting, a path or a name cannot be used as given."""


class StoreNotFound(ConfigError, FileNotFoundError):
    """There is certainly no store at this place; an unreachable one is a BackendError."""


class PathNotFound(ConfigError, FileNotFoundError):
    """A model has no such file, or there is nothing at a path that is to be added."""


class TensorNotFound(ConfigError, KeyError):
    """A model has no such tensor, or several files have one of this name."""

    __str__ = CasstoreError.__str__  # KeyError would show the message in quotes


def add_note(error: BaseException, text: str) -> None:
    """Add a sentence to an error; tracebacks show it from Python 3.11 on."""
    error.__notes__ = [*notes(error), text]  # PEP 678, also for Python 3.10


def notes(error: BaseException) -> list[str]:
    """Return the sentences that were added to an error."""
    return list(getattr(error, "__notes__", ()))
