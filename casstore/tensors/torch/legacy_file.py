"""What torch.save wrote before 1.6, and writes on request: pickles, then the storages one behind the other.

The pickles are a magic number, the protocol, facts about the machine, the saved value, and the storages' keys in the
order of the file. Each storage is its number of elements in eight bytes, then its bytes. Source:
`_legacy_save` and `_legacy_load` in torch/serialization.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casstore.tensors.dtypes import DTYPES
from casstore.tensors.span import MAX_SPANS, UniqueNames, Unrecognised
from casstore.tensors.torch.pickle_machine import MAX_PICKLE_BYTES, read_symbols
from casstore.tensors.torch.storages import named_views, storage_dtype, storage_spans
from casstore.tensors.torch.symbols import Node
from casstore.tensors.window import Window, read_exactly

if TYPE_CHECKING:
    from casstore.tensors.span import ByteSource, TensorSpan
    from casstore.tensors.torch.pickle_machine import Symbols
    from casstore.tensors.torch.symbols import StorageSymbol

__all__ = ["matches", "spans"]

# A pickle of 0x1950a86a20f9469cfc6c, behind the protocol and, in newer protocols, the length of a frame.
_NUMBER = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19."
_NUMBER_AT = (2, 11)
_PROTOCOL = 1001
_FIRST_READ = 256 << 10


def matches(head: bytes) -> bool:
    """Say whether a file that starts with `head`, of 24 bytes, is one."""
    return head[:1] == b"\x80" and any(head.startswith(_NUMBER, at) for at in _NUMBER_AT)


def spans(source: ByteSource) -> list[TensorSpan]:
    """Return the tensors on the storages, or raise Unrecognised.

    They are named as in a torch zip; a storage that is one span is named `data/<key>`. A storage of a type that is not
    known has no length that is known, so that the file is unknown.
    """
    pickles = _Pickles(source)
    pickles.next()
    protocol, machine, saved, keys = (pickles.next() for _ in range(4))
    if protocol.value != _PROTOCOL:
        raise Unrecognised("no protocol that is known")
    views = {}
    if _is_little_endian(machine.value):
        try:
            views = named_views(saved.value, "")
        except Unrecognised:
            # The absurd names are the pickle's: the storages are still in their places.
            views = {}
    names = UniqueNames()
    return [
        span._replace(name=names.claim(span.name))
        for key, begin, length in _storages(source, pickles.position, keys.value, saved.storages)
        for span in storage_spans(f"data/{key}", begin, length, views.get(key, []))
    ]


def _is_little_endian(machine: object) -> bool:
    return isinstance(machine, Node) and any(
        key == "little_endian" and value is True for key, value in machine.items
    )


def _storages(
    source: ByteSource, position: int, keys: object, storages: dict[str, StorageSymbol]
) -> list[tuple[str, int, int]]:
    """Return key, begin and length in bytes of each storage, from `position` on."""
    if type(keys) is not list or not all(type(key) is str for key in keys):
        raise Unrecognised("keys that are no text")
    if len(keys) > MAX_SPANS or len(set(keys)) != len(keys):
        raise Unrecognised("a key twice, or absurdly many")
    window = Window(source)
    found = []
    for key in keys:
        storage = storages.get(key)
        dtype = storage_dtype(storage.kind) if storage is not None else None
        if storage is None or dtype is None:
            raise Unrecognised("a storage of no type that is known")
        if position + 8 > source.size:
            raise Unrecognised("cut short")
        elements = int.from_bytes(window.take(position, 8), "little")
        if type(storage.elements) is not int or elements != storage.elements:
            raise Unrecognised("a storage of two lengths")
        length = elements * DTYPES[dtype].block_bytes
        found.append((key, position + 8, length))
        position += 8 + length
    if position > source.size:
        raise Unrecognised("cut short")
    return found


class _Pickles:
    """Reads the pickles at the head of a file, one after the other."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._begin = 0
        self._data = read_exactly(source, 0, min(_FIRST_READ, source.size))
        self.position = 0

    def next(self) -> Symbols:
        """Return what the next pickle says, or raise Unrecognised."""
        # Only its end says how long a pickle is: where it seems broken, more is read, up to the limit.
        most = min(MAX_PICKLE_BYTES, self._source.size - self.position)
        while True:
            held = self._begin + len(self._data) - self.position
            try:
                symbols = read_symbols(self._data, self.position - self._begin)
            except Unrecognised:
                if held >= most:
                    raise
            else:
                self.position = self._begin + symbols.end
                return symbols
            self._data = read_exactly(self._source, self.position, min(most, max(8 * held, _FIRST_READ)))
            self._begin = self.position
