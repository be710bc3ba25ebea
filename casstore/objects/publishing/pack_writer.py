"""Writing packs: encode and verify frames on worker threads, stream them out, name the file by its hash."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from casstore import codecs
from casstore.concurrency.buffers import BLOCK_BUFFER, give_block, new_buffer, scratch, take_block
from casstore.concurrency.workers import SerialThread
from casstore.digest import Hasher, digest
from casstore.errors import CasstoreError, ConfigError, DigestMismatch, ObjectExists
from casstore.format import fields, frame, pack
from casstore.format import manifest as manifest_format
from casstore.format.frame import HEADER_SIZE, FrameHeader
from casstore.format.rows import Kind, max_plain
from casstore.objects.keys import pack_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Self

    from casstore.backend.base import Backend, BlobWriter
    from casstore.codecs import ElementHint
    from casstore.format.pack import Footer

PACK_TARGET = 64 << 20
"""Bytes at which a pack is closed and the next one begun: its fsync then runs beside further encoding."""

REMOTE_PACK_TARGET = 32 << 20
"""The same for a store that is a network away: several packs are sent at once, each from a spool."""

UPLOADS = 6
"""Packs that are sent at once: a single stream seldom fills a long link."""

_FIRST_UPLOAD = 7 << 20
"""Bytes at which the first of several packs for a slow link is closed, whatever the size of the others."""

_WORTH_FINISHING = 4 << 20
"""Least size in bytes of an interrupted pack that is finished for the next attempt; smaller ones are soon rewritten."""

_SMALL = 64 << 10
"""Frames of fewer bytes get memory of their own: a borrowed block would be mostly unused."""

_VERIFIED = 2 << 20
"""Plain bytes that are verified at once, right after encoding, while the processor's cache still holds them."""

_HELD = 256 << 10
"""Bytes of small frames that wait for others: each write is a switch to another thread and back, unless that thread is idle."""

_MAX_WAITING = 1
"""Writes that may wait for the disk: each holds a block of memory, and more of them brought no speed."""


@dataclass(frozen=True, slots=True)
class EncodedFrames:
    """Frames ready to append: `data` is header and payload of each, one after the other.

    `block`, if any, is the memory behind `data`, which is given back once it is written.
    """

    headers: list[FrameHeader]
    data: memoryview
    block: memoryview | None = None

    def release(self) -> None:
        """Give the memory back; nobody may use `data` any more."""
        if self.block is not None:
            give_block(self.block)


@dataclass(frozen=True, slots=True)
class WrittenPack:
    """A pack that is durable under its final name."""

    pack_id: bytes
    footer: Footer
    size: int


def encode_frames(
    kind: Kind,
    ids: Sequence[bytes],
    block: memoryview,
    cuts: Sequence[tuple[int, int]],
    hints: Sequence[ElementHint | None],
) -> EncodedFrames:
    """Encode the objects `block[offset:offset + length]` and verify that each decodes to itself.

    Runs on a worker thread; `block` is only read. Raises DigestMismatch if an encoder is wrong.
    """
    room = sum(length for _, length in cuts) + HEADER_SIZE * len(cuts)
    lent = take_block() if _SMALL < room <= BLOCK_BUFFER else None
    data = new_buffer(room) if lent is None else lent[:room]
    headers: list[FrameHeader] = []
    payloads: list[memoryview] = []
    position = verified = 0
    for at, item in enumerate(codecs.encode_each(block, cuts, hints, out=data, lead=HEADER_SIZE)):
        header = FrameHeader(ids[at], kind, item.encoding, cuts[at][1], len(item.payload))
        headers.append(header)
        payloads.append(item.payload)
        data[position : position + HEADER_SIZE] = frame.encode_header(header)
        position += HEADER_SIZE + header.stored
        if not _verified_later(cuts, verified, at):
            _verify(headers[verified:], payloads[verified:], block, cuts[verified : at + 1])
            verified = at + 1
    return EncodedFrames(headers, data[:position], lent)


def encode_object(kind: Kind, plain: bytes) -> EncodedFrames:
    """Encode one small object, a layout, tree or manifest."""
    return encode_objects(kind, {digest(plain): plain})


def encode_objects(kind: Kind, objects: Mapping[bytes, bytes]) -> EncodedFrames:
    """Encode small objects, plain bytes by id; raise ConfigError for one that `check_object` refuses."""
    for plain in objects.values():
        check_object(kind, plain)
    return encode_checked(kind, objects)


def encode_checked(kind: Kind, objects: Mapping[bytes, bytes]) -> EncodedFrames:
    """Encode small objects that `check_object` did not refuse."""
    lengths = [len(plain) for plain in objects.values()]
    cuts = list(zip(accumulate([0, *lengths[:-1]]), lengths, strict=True))
    return encode_frames(
        kind, list(objects), memoryview(b"".join(objects.values())), cuts, [None] * len(cuts)
    )


def check_object(kind: Kind, plain: bytes) -> None:
    """Raise ConfigError for an object that a reader would refuse (invariant 14).

    Layouts and the manifests of models and runs are checked when they are encoded; a chunk may hold anything.
    """
    limit = max_plain(kind)
    if len(plain) > limit:
        raise ConfigError(
            f"A {kind.name.lower()} of {len(plain)} bytes cannot be stored: {limit >> 20} MiB is the limit."
        )
    if kind is Kind.TREE:
        fields.check_readable(plain, manifest_format.decode_tree, kind="tree")


def _verified_later(cuts: Sequence[tuple[int, int]], first: int, at: int) -> bool:
    """Say whether chunk `at` is verified together with the next one, in the group that starts at `first`."""
    return (
        at + 1 < len(cuts)
        and sum(cuts[at]) == cuts[at + 1][0]
        and sum(cuts[at + 1]) - cuts[first][0] <= _VERIFIED
    )


def _verify(
    headers: Sequence[FrameHeader],
    payloads: Sequence[memoryview],
    block: memoryview,
    cuts: Sequence[tuple[int, int]],
) -> None:
    """Decode payloads of adjoining chunks before they are published (invariant 9).

    Bytes equal to those of the chunk have the hash that names it. They are compared a few at a time, as they are put together.
    """
    begin = cuts[0][0]
    plain = block[begin : sum(cuts[-1])]
    pairs = [(header.encoding, payload) for header, payload in zip(headers, payloads, strict=True)]
    lengths = [length for _, length in cuts]
    if codecs.decodes_to(pairs, lengths, plain):
        return
    decoded = scratch(len(plain))
    codecs.decode_batch(pairs, lengths, decoded)
    for header, (offset, length) in zip(headers, cuts, strict=True):
        actual = digest(decoded[offset - begin : offset - begin + length])
        if actual != header.object_id:
            raise DigestMismatch(header.object_id.hex(), actual.hex(), "a new frame", "Nothing was added.")


def pack_target(backend: Backend) -> int:
    """Return the size in bytes at which packs for a backend are closed."""
    return REMOTE_PACK_TARGET if backend.is_remote else PACK_TARGET


class PackWriter:
    """Appends frames to packs: one thread writes and hashes them, another one commits full packs.

    Use as a context manager: packs that were not finished are discarded. For one thread.
    `target` is the size in bytes at which a pack is closed, by default what suits the backend. For one that is a network
    away, UPLOADS full packs are committed at once, and `append` waits while more than that are under way: data that a
    slow link has not taken yet lies in a spool.
    """

    def __init__(self, backend: Backend, *, target: int | None = None) -> None:
        self._backend = backend
        self._uploads = UPLOADS if backend.is_remote else None
        self._target = target or pack_target(backend)
        # The link is idle until the first pack is full.
        self._full = self._target if self._uploads is None else min(self._target, _FIRST_UPLOAD)
        self._writing = SerialThread()
        self._committing = (
            SerialThread()
            if self._uploads is None
            else ThreadPoolExecutor(self._uploads, thread_name_prefix="casstore-commit")
        )
        self._writes: deque[Future[None]] = deque()
        self._commits: list[_Commit] = []
        self._open: _OpenPack | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self._committing, self._writing:
            pass  # Leaving them waits for their tasks.
        if self._open is not None:
            self._open.writer.discard()  # Invariant 2: a file without its final name is not part of the store.
            self._open = None

    def rescue(self) -> list[WrittenPack]:
        """After a failure: finish the open pack if it is complete and large enough, then end like `__exit__`.

        Returns the packs that are durable and that nobody has taken yet. Raises nothing of what failed.
        """
        # Invariant 13: this only tries to save work; the original error is raised anyway.
        with contextlib.suppress(CasstoreError):
            if self._open is not None and self._open.size >= _WORTH_FINISHING and self._is_whole(self._open):
                self._close_pack()
        self.__exit__()
        return [commit.done.result() for commit in self._commits if commit.done.exception() is None]

    def _is_whole(self, opened: _OpenPack) -> bool:
        """Say whether every frame that the open pack's footer would list was written: an interrupt can come anywhere."""
        self._hand_over(opened)
        wait(self._writes)
        if any(write.exception() is not None for write in self._writes):
            return False
        last = opened.headers[-1] if opened.headers else None
        end = opened.offsets[-1] + last.size + last.stored if last is not None and opened.offsets else 0
        written = opened.writer.offset == opened.hashed == opened.size
        return len(opened.headers) == len(opened.offsets) and written and end == opened.size

    def append(self, frames: EncodedFrames) -> None:
        """Append verified frames in the background; the pack is closed after them if it is full."""
        if not frames.headers:
            return
        if self._open is None:
            self._open = _OpenPack(self._backend.open_writer())
            self._emit(self._open, pack.encode_header(os.urandom(pack.NONCE_SIZE)))
        at = self._open.size
        for header in frames.headers:
            self._open.headers.append(header)
            self._open.offsets.append(at)
            at += header.size + header.stored
        self._emit(self._open, frames.data, then=frames.release)
        if self._open.size >= self._full:
            self._close_pack()
            self._full = self._target

    def seal(self) -> list[WrittenPack]:
        """Close the last pack; return all that `finish` will return. Their bytes are written, and on their way to be durable."""
        self._close_pack()
        self._wait_for_writes(left=0)
        return [commit.sealed.result() for commit in self._commits]

    def finish(self) -> list[WrittenPack]:
        """Close the last pack, wait until all are durable, and return those since the last call."""
        self._close_pack()
        self._wait_for_writes(left=0)
        commits, self._commits = self._commits, []
        return [commit.done.result() for commit in commits]

    def take_finished(self) -> list[WrittenPack]:
        """Return the packs that have become durable since the last call; wait for none."""
        done = [commit for commit in self._commits if commit.done.done()]
        self._commits = [commit for commit in self._commits if commit not in done]
        return [commit.done.result() for commit in done]

    def _close_pack(self) -> None:
        closing = self._open
        if closing is None:
            return
        footer = pack.footer_rows(closing.headers, closing.offsets)
        self._emit(closing, pack.encode_footer(footer, begin=closing.size))
        self._hand_over(closing)
        written = self._writes[-1]
        # In this order: an interrupt in between must not leave a pack that nobody discards.
        sealed: Future[WrittenPack] = Future()
        self._commits.append(
            _Commit(sealed, self._committing.submit(_commit, closing, footer, written, sealed))
        )
        self._open = None
        while self._uploads is not None:
            waiting = [commit.done for commit in self._commits if not commit.done.done()]
            if len(waiting) <= self._uploads:
                break
            for commit in wait(waiting, return_when=FIRST_COMPLETED).done:
                commit.result()  # A failure is raised now, not after all the rest was sent.

    def _emit(
        self, target: _OpenPack, data: bytes | memoryview, *, then: Callable[[], None] | None = None
    ) -> None:
        target.size += len(data)
        target.held.append(_Part(data, then))
        # What was borrowed is given back soon.
        if len(data) >= _SMALL or sum(len(part.data) for part in target.held) >= _HELD:
            self._hand_over(target)

    def _hand_over(self, target: _OpenPack) -> None:
        """Have the parts that are held written: by the other thread, or here if that has nothing to do and they are few."""
        if not target.held:
            return
        parts, target.held = target.held, []
        if sum(len(part.data) for part in parts) < _HELD and all(write.done() for write in self._writes):
            self._wait_for_writes(left=0)  # Raises if one of them failed.
            _write(target, parts)
            written: Future[None] = Future()
            written.set_result(None)
            self._writes.append(written)
        else:
            self._writes.append(self._writing.submit(_write, target, parts))
            self._wait_for_writes(left=_MAX_WAITING)

    def _wait_for_writes(self, *, left: int) -> None:
        while len(self._writes) > left:
            self._writes.popleft().result()


@dataclass(slots=True)
class _OpenPack:
    """A pack that is being written: `size` counts the bytes appended, `hashed` those that were written and hashed."""

    writer: BlobWriter
    hasher: Hasher = field(default_factory=Hasher)
    size: int = 0
    hashed: int = 0
    headers: list[FrameHeader] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    held: list[_Part] = field(default_factory=list)


class _Part(NamedTuple):
    """Bytes of a pack, and what to do when they are written."""

    data: bytes | memoryview
    then: Callable[[], None] | None


def _write(target: _OpenPack, parts: Sequence[_Part]) -> None:
    target.writer.write([part.data for part in parts])
    for part in parts:
        target.hasher.update(part.data)
        target.hashed += len(part.data)
        if part.then is not None:
            part.then()


class _Commit(NamedTuple):
    """A pack on its way: known from when its bytes are written, and done when it is durable under its name."""

    sealed: Future[WrittenPack]
    done: Future[WrittenPack]


def _commit(
    target: _OpenPack, footer: Footer, written: Future[None], sealed: Future[WrittenPack]
) -> WrittenPack:
    with target.writer as writer:  # discards the temporary file if the commit fails (invariant 2)
        try:
            written.result()
        except BaseException as error:
            # Invariant 11: whoever waits for the pack gets the error.
            sealed.set_exception(error)
            raise
        pack = WrittenPack(target.hasher.digest(), footer, target.size)
        sealed.set_result(pack)
        # Invariant 6: with its nonce, a pack of this name is this very pack, from an attempt that seemed to fail.
        with contextlib.suppress(ObjectExists):
            writer.commit(pack_key(pack.pack_id))
    return pack
