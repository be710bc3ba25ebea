"""The S3 server's own process: moto's application behind cheroot, `python s3_process.py HOST PORT`.

moto's own server closes each connection after one answer, as no real one does: on a slow link that doubles the time of a
request, and every upload begins as slowly as TCP does. Each request is a line of the log.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cheroot.wsgi import Server
from moto.server import DomainDispatcherApplication, create_backend_app

if TYPE_CHECKING:
    from collections.abc import Iterable

_THREADS = 32


def main() -> None:
    application = DomainDispatcherApplication(create_backend_app)

    def logged(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        print(f'"{environ["REQUEST_METHOD"]} {environ["PATH_INFO"]} HTTP/1.1" -', flush=True)
        answer: Iterable[bytes] = application(environ, start_response)
        return answer

    Server((sys.argv[1], int(sys.argv[2])), logged, numthreads=_THREADS, timeout=60).start()


if __name__ == "__main__":
    main()
