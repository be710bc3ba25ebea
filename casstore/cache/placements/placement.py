"""The plain files of one cached model: the ids that they should have, and whether they still do.

A note beside the files, `placement.json`, says this to other processes.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from casstore.cache.views import write_file
from casstore.digest import DIGEST_SIZE, Hasher
from casstore.machine.stat_identity import StatIdentity
from casstore.machine.unchanged import UnchangedFiles, flush

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTE = "placement.json"
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class PlacedFile:
    """One file: where it is, its identity when it was last read, and the id of the bytes that it should hold.

    `proof` is the key by which UnchangedFiles recognises it as unchanged, None if it cannot.
    """

    location: str
    identity: StatIdentity
    file_id: bytes
    proof: bytes | None = None

    def seems_intact(self) -> bool:
        """Say whether the stat identity is still the same: a hint, since on some file systems bytes can change without it."""
        try:
            return StatIdentity.of(os.stat(self.location)) == self.identity
        except OSError:
            return False  # Invariant 4: a file that cannot be examined is not trusted; it comes from the store again.

    def verified(self, unchanged: UnchangedFiles) -> PlacedFile | None:
        """Return the file as it is now if it holds what it should, read unless that is proved (invariant 14)."""
        try:
            identity = StatIdentity.of(os.stat(self.location))
            proof = unchanged.key(self.location, identity)
            if proof is not None and proof == self.proof:
                return self
            descriptor = os.open(self.location, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None  # Invariant 4, as above.
        try:
            if identity.size != self.identity.size:
                return None
            flushed = flush(descriptor)
            before = StatIdentity.of(os.fstat(descriptor))
            if _file_id(descriptor) != self.file_id:
                return None
            after = StatIdentity.of(os.fstat(descriptor))
        except OSError:
            return None  # Invariant 4, as above.
        finally:
            os.close(descriptor)
        proved = flushed and before == after == identity
        return replace(self, identity=after, proof=proof if proved else None)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where the files of one cached model lie: its model id, its config with paths here, and each file.

    `store` is the id of the store that holds it. An `output` is what a run was for: its files stay when that has ended.
    """

    content: str
    model: dict[str, Any]
    files: tuple[PlacedFile, ...]
    store: str = ""
    output: bool = False

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.identity.size for file in self.files)

    def seems_intact(self) -> bool:
        """Say whether every file is there with its identity: a hint, not a proof."""
        return all(file.seems_intact() for file in self.files)

    def verified(self) -> Placement | None:
        """Return the placement as it is now if every file holds what was cached, else None.

        Files are read unless their file system proves that nothing changed (invariant 14).
        """
        unchanged = UnchangedFiles()
        files: list[PlacedFile] = []
        for file in self.files:
            found = file.verified(unchanged)
            if found is None:
                return None
            files.append(found)
        return replace(self, files=tuple(files))

    def verified_files(self) -> Iterator[PlacedFile]:
        """Yield the files that hold what was cached: these, and no others, may be deleted."""
        unchanged = UnchangedFiles()
        for file in self.files:
            found = file.verified(unchanged) if file.seems_intact() else None
            if found is not None:
                yield found

    @classmethod
    def read(cls, folder: Path) -> Placement | None:
        """Return what a folder's note says; None for a folder without one that can be used."""
        try:
            return cls.decode((folder / NOTE).read_bytes())
        except OSError:
            return None  # Without a note the files are not trusted: they come from the store again (invariant 4).

    def write(self, folder: Path) -> None:
        """Write the note beside the files, whole or not at all. Raises OSError."""
        write_file(folder / NOTE, self.encode())

    def encode(self) -> bytes:
        """Return the bytes of the note."""
        files = [
            [file.location, file.file_id.hex(), (file.proof or b"").hex(), *file.identity.fields()]
            for file in self.files
        ]
        value = {"content": self.content, "model": self.model, "files": files}
        return json.dumps({**value, "store": self.store, "output": self.output}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Placement | None:
        """Read a note; None for one that cannot be used."""
        try:
            value = json.loads(data)
            files = tuple(_decode_file(row) for row in value["files"])
            store, output = str(value.get("store", "")), value.get("output") is True
            return cls(str(value["content"]), dict(value["model"]), files, store, output)
        except (ValueError, KeyError, TypeError):
            return None  # The files can be made again (invariant 4), so a torn note only costs time.


def _decode_file(row: Any) -> PlacedFile:
    location, file_id, proof, *identity = row
    if len(bytes.fromhex(file_id)) != DIGEST_SIZE:
        raise ValueError("no file id")
    return PlacedFile(
        str(location),
        StatIdentity(*map(int, identity)),
        bytes.fromhex(file_id),
        bytes.fromhex(proof) or None,
    )


def is_below(location: str, folder: Path) -> bool:
    """Say whether a path is below a folder."""
    return location.startswith(f"{folder}{os.sep}")


def _file_id(descriptor: int) -> bytes:
    """Hash a file, read rather than mapped: truncating a mapped file would kill the process."""
    hasher = Hasher(max_threads=Hasher.AUTO)
    room = memoryview(bytearray(_PIECE))
    while count := os.readv(descriptor, [room]):
        hasher.update(room[:count])
    return hasher.digest()
