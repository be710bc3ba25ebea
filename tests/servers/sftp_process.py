"""The SFTP server's own process: asyncssh, one user with one key, the files of this machine.

Arguments: port, host key, authorised keys, and names of protocol extensions that it must not offer.
"""

from __future__ import annotations

import asyncio
import os
import sys

import asyncssh
from asyncssh.sftp import SFTPServerHandler

SFTPServerHandler.version = 3


async def serve(port, host_key, authorised, *withheld):
    hidden = {name.encode() for name in withheld}
    SFTPServerHandler._extensions = [
        (name, data) for name, data in SFTPServerHandler._extensions if name not in hidden
    ]
    for name in hidden:
        SFTPServerHandler._packet_handlers.pop(name)
    server = await asyncssh.listen(
        "127.0.0.1",
        int(port),
        server_host_keys=[host_key],
        authorized_client_keys=authorised,
        sftp_factory=True,
    )
    await server.wait_closed()


if __name__ == "__main__":
    os.umask(0o077)
    asyncio.run(serve(*sys.argv[1:]))
