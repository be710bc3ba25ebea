"""SFTP servers, through sshfs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from casstore.backend.fsspec.drivers.driver import COMMON_ERRORS, Driver
from casstore.errors import AccessDenied, BackendUnavailable, ObjectExists, ObjectNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class SftpDriver(Driver):
    """A folder on an SFTP server."""

    protocols = frozenset({"sftp", "ssh"})
    extra = "sftp"
    errors = (
        COMMON_ERRORS
        | dict.fromkeys(("DisconnectError", "SFTPConnectionLost", "SFTPNoConnection"), BackendUnavailable)
        | dict.fromkeys(("SFTPPermissionDenied", "PermissionDenied", "HostKeyNotVerifiable"), AccessDenied)
        | dict.fromkeys(("SFTPNoSuchFile", "SFTPNoSuchPath", "SFTPNotADirectory"), ObjectNotFound)
        | {"SFTPFileAlreadyExists": ObjectExists}
    )
    links = True
    reconnects = True

    @staticmethod
    def open(url: str, options: Mapping[str, Any]) -> Any:
        """Connect to a host whose key is known."""
        from casstore.backend.fsspec.drivers.sftp_files import make_sftp  # noqa: PLC0415  # an optional extra

        return make_sftp(url, options)

    def close(self) -> None:
        """Close the connection."""
        self.fs.close_store()

    def write_making(self, source: bytes | str, path: str, *, making: Sequence[str]) -> None:
        """Write and make directories at the same time."""
        self.fs.write_making(source, path, making=making)
