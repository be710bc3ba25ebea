"""A stack machine that reads a pickle's opcodes into symbols (torch_symbols.py): it never unpickles.

It knows containers, text and small integers; every other value is opaque. `_ACTIONS` has the meaning of every opcode;
the loop in `_Machine.run` does the few that fill torch's files without a call for each. Source: the opcode comments in
CPython's Lib/pickletools.py.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from casstore.tensors.span import Unrecognised
from casstore.tensors.torch.symbols import Global, Node, StorageSymbol, call, persistent

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MAX_PICKLE_BYTES", "Symbols", "read_symbols"]

MAX_PICKLE_BYTES = 64 << 20
# Opcodes of one pickle; a tensor takes about forty. Each makes at most one object of under a hundred bytes.
MAX_OPCODES = 8_000_000

# Stands for a value that describes no tensor: a float, bytes, a huge integer.
_UNKNOWN: Final = None


class Symbols(NamedTuple):
    """What a pickle says: its value, the storages that it names by their keys, and the index behind it."""

    value: object
    storages: dict[str, StorageSymbol]
    end: int


def read_symbols(data: bytes, begin: int = 0) -> Symbols:
    """Return what the pickle at `begin` says in symbols, or raise Unrecognised."""
    if len(data) - begin > MAX_PICKLE_BYTES:
        raise Unrecognised("an absurd pickle")
    machine = _Machine(data, begin)
    try:
        value = machine.run()
    except (LookupError, ValueError, struct.error) as error:
        # A stack that runs empty, an opcode or memo that is not there, text that is not UTF-8, an odd number of items:
        # nothing outside `data` is touched in there, so all of them mean that this is no pickle.
        raise Unrecognised("a pickle that is broken") from error
    return Symbols(value, machine.storages, machine.position)


class _Machine:
    """Runs one pickle. Marks are kept beside the stack, as positions in it."""

    def __init__(self, data: bytes, begin: int = 0) -> None:
        self._data = data
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self.position = begin
        self.storages: dict[str, StorageSymbol] = {}

    def run(self) -> object:  # noqa: PLR0915  one loop: a call for each opcode takes most of the time
        """Run to the end; return the value. May raise LookupError, ValueError or struct.error for a broken pickle.

        The opcodes of a tensor that torch saves are done here; a test holds that each does what its action does.
        """
        data, stack, marks, memo = self._data, self._stack, self._marks, self._memo
        actions, push, pop = _ACTIONS, self._stack.append, self._stack.pop
        u16, u32, i32, storages = _U16.unpack_from, _U32.unpack_from, _I32.unpack_from, self.storages
        at = self.position
        for _ in range(MAX_OPCODES):
            opcode = data[at]
            at += 1
            if opcode > 0x60:
                if opcode == 0x72:  # LONG_BINPUT
                    memo[u32(data, at)[0]] = stack[-1]
                    at += 4
                elif opcode == 0x71:  # BINPUT
                    memo[data[at]] = stack[-1]
                    at += 1
                elif opcode == 0x68:  # BINGET
                    push(memo[data[at]])
                    at += 1
                elif opcode == 0x74:  # TUPLE
                    begin = marks.pop()
                    stack[begin:] = (tuple(stack[begin:]),)
                elif 0x85 <= opcode <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                    values = tuple(stack[0x84 - opcode :])
                    if len(values) != opcode - 0x84:
                        raise Unrecognised("a stack that runs empty")
                    stack[0x84 - opcode :] = (values,)
                elif opcode == 0x89:  # NEWFALSE
                    push(False)
                elif opcode == 0x94:  # MEMOIZE
                    memo[len(memo)] = stack[-1]
                elif opcode == 0x8C:  # SHORT_BINUNICODE
                    begin = at + 1
                    at = begin + data[at]
                    if at > len(data):
                        raise Unrecognised("a pickle cut short")
                    push(data[begin:at].decode())
                elif opcode == 0x6A:  # LONG_BINGET
                    push(memo[u32(data, at)[0]])
                    at += 4
                else:
                    self.position = at
                    actions[opcode](self)
                    at = self.position
            elif opcode == 0x4B:  # BININT1
                push(data[at])
                at += 1
            elif opcode == 0x28:  # MARK
                marks.append(len(stack))
            elif opcode == 0x58:  # BINUNICODE
                begin = at + 4
                at = begin + u32(data, at)[0]
                if at > len(data):
                    raise Unrecognised("a pickle cut short")
                push(data[begin:at].decode())
            elif opcode == 0x4D:  # BININT2
                push(u16(data, at)[0])
                at += 2
            elif opcode == 0x52:  # REDUCE
                values = pop()
                push(call(pop(), values))
            elif opcode == 0x47:  # BINFLOAT
                at += 8
                if at > len(data):
                    raise Unrecognised("a pickle cut short")
                push(_UNKNOWN)
            elif opcode == 0x51:  # BINPERSID
                storage = persistent(pop())
                if storage is not None:
                    storages[storage.key] = storage
                push(storage)
            elif opcode == 0x29:  # EMPTY_TUPLE
                push(())
            elif opcode == 0x4A:  # BININT
                push(i32(data, at)[0])
                at += 4
            elif opcode == _STOP:
                self.position = at
                return pop()
            else:
                self.position = at
                actions[opcode](self)
                at = self.position
        raise Unrecognised("an absurd pickle")

    # Arguments of opcodes.

    def take(self, length: int) -> bytes:
        begin = self.position
        if not 0 <= length <= len(self._data) - begin:
            raise Unrecognised("a pickle cut short")
        self.position = begin + length
        return self._data[begin : self.position]

    def number(self, form: struct.Struct) -> int:
        (value,) = form.unpack_from(self._data, self.position)
        self.position += form.size
        return int(value)

    def line(self) -> str:
        end = self._data.index(b"\n", self.position)
        text = self._data[self.position : end].decode()
        self.position = end + 1
        return text

    # What opcodes do.

    def nothing(self) -> None:
        pass

    def mark(self) -> None:
        self._marks.append(len(self._stack))

    def marked(self) -> list[Any]:
        begin = self._marks.pop()
        values = self._stack[begin:]
        del self._stack[begin:]
        return values

    def push(self, value: object) -> None:
        self._stack.append(value)

    def pop(self) -> Any:
        return self._stack.pop()

    def duplicate(self) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    def integer_line(self) -> None:
        text = self.line()
        self._stack.append(int(text) if len(text) <= 20 else _UNKNOWN)

    def long(self) -> None:
        raw = self.take(self.number(_U8))
        self._stack.append(int.from_bytes(raw, "little", signed=True) if len(raw) <= 8 else _UNKNOWN)

    def make_tuple(self, count: int) -> None:
        values = tuple(self._stack[-count:])
        if len(values) != count:
            raise Unrecognised("a stack that runs empty")
        self._stack[-count:] = [values]

    def make_dict(self) -> None:
        node, values = Node(), self.marked()
        node.add_items(zip(values[::2], values[1::2], strict=True))
        self._stack.append(node)

    def append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is Node:
            target.add_items(enumerate(values, len(target.items)))

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if type(target) is Node:
            target.add_items(zip(values[::2], values[1::2], strict=True))

    def set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self.set_items([key, value])

    def stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        known = type(name) is type(module) is str
        self._stack.append(Global(module, name) if known else _UNKNOWN)

    def reduce(self) -> None:
        args, function = self._stack.pop(), self._stack.pop()
        self._stack.append(call(function, args))

    def new_with_keywords(self) -> None:
        keywords, args, _ = self._stack.pop(), self._stack.pop(), self._stack.pop()
        self._stack.append(Node((args, keywords)))

    def build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if type(target) is Node:
            target.add_state(state)

    def persistent(self) -> None:
        storage = persistent(self._stack.pop())
        if storage is not None:
            self.storages[storage.key] = storage
        self._stack.append(storage)

    def opaque(self, length: int) -> None:
        self.take(length)
        self._stack.append(_UNKNOWN)

    def opaque_line(self) -> None:
        self.line()
        self._stack.append(_UNKNOWN)

    def instance(self) -> None:
        self.line()
        self.line()
        self._stack.append(Node(tuple(self.marked())))


_STOP: Final = ord(".")
_U8, _U16, _U32, _U64, _I32 = map(struct.Struct, ("<B", "<H", "<I", "<Q", "<i"))


def _text(form: struct.Struct) -> Callable[[_Machine], object]:
    return lambda machine: machine.push(machine.take(machine.number(form)).decode())


def _integer(form: struct.Struct) -> Callable[[_Machine], object]:
    return lambda machine: machine.push(machine.number(form))


def _constant(value: object) -> Callable[[_Machine], object]:
    return lambda machine: machine.push(value)


_BY_NAME: dict[bytes, Callable[[_Machine], object]] = {
    b"\x80": lambda m: m.take(1),  # PROTO
    b"\x95": lambda m: m.take(8),  # FRAME
    b"(": _Machine.mark,
    b"0": _Machine.pop,
    b"1": _Machine.marked,  # POP_MARK
    b"2": _Machine.duplicate,
    b"N": _constant(None),
    b"\x88": _constant(True),
    b"\x89": _constant(False),
    b"I": _Machine.integer_line,
    b"K": _integer(_U8),
    b"M": _integer(_U16),
    b"J": _integer(_I32),
    b"\x8a": _Machine.long,
    b"X": _text(_U32),
    b"\x8c": _text(_U8),
    b"\x8d": _text(_U64),
    b"T": _text(_I32),
    b"U": _text(_U8),
    b"V": lambda m: m.push(m.line()),  # UNICODE
    b"L": _Machine.opaque_line,  # LONG
    b"F": _Machine.opaque_line,  # FLOAT
    b"S": _Machine.opaque_line,  # STRING
    b"P": _Machine.opaque_line,  # PERSID
    b"G": lambda m: m.opaque(8),
    b"\x82": lambda m: m.opaque(1),
    b"\x83": lambda m: m.opaque(2),
    b"\x84": lambda m: m.opaque(4),
    b"\x8b": lambda m: m.opaque(m.number(_I32)),
    b"B": lambda m: m.opaque(m.number(_U32)),
    b"C": lambda m: m.opaque(m.number(_U8)),
    b"\x8e": lambda m: m.opaque(m.number(_U64)),
    b"\x96": lambda m: m.opaque(m.number(_U64)),
    b"\x97": _constant(None),  # NEXT_BUFFER
    b"\x98": _Machine.nothing,  # READONLY_BUFFER
    b"p": lambda m: m.put(int(m.line()[:20])),
    b"q": lambda m: m.put(m.number(_U8)),
    b"r": lambda m: m.put(m.number(_U32)),
    b"\x94": _Machine.memoize,
    b"g": lambda m: m.get(int(m.line()[:20])),
    b"h": lambda m: m.get(m.number(_U8)),
    b"j": lambda m: m.get(m.number(_U32)),
    b")": _constant(()),
    b"t": lambda m: m.push(tuple(m.marked())),
    b"\x85": lambda m: m.make_tuple(1),
    b"\x86": lambda m: m.make_tuple(2),
    b"\x87": lambda m: m.make_tuple(3),
    b"]": lambda m: m.push([]),
    b"l": lambda m: m.push(m.marked()),
    b"a": lambda m: m.append([m.pop()]),
    b"e": lambda m: m.append(m.marked()),
    b"}": lambda m: m.push(Node()),
    b"d": _Machine.make_dict,
    b"s": _Machine.set_item,
    b"u": lambda m: m.set_items(m.marked()),
    b"\x8f": lambda m: m.push(Node()),  # EMPTY_SET
    b"\x90": lambda m: m.append(m.marked()),  # ADDITEMS
    b"\x91": lambda m: m.push(Node(tuple(m.marked()))),  # FROZENSET
    b"c": lambda m: m.push(Global(m.line(), m.line())),
    b"\x93": _Machine.stack_global,
    b"i": _Machine.instance,  # INST
    b"o": lambda m: m.push(Node(tuple(m.marked()[1:]))),  # OBJ
    b"R": _Machine.reduce,
    b"\x81": _Machine.reduce,  # NEWOBJ
    b"\x92": _Machine.new_with_keywords,
    b"b": _Machine.build,
    b"Q": _Machine.persistent,
}
_ACTIONS = {ord(opcode): action for opcode, action in _BY_NAME.items()}
