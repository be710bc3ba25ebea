"""A POSIX file system in memory that forgets, at a crash, what nobody synced.

It promises exactly what POSIX does and is as unkind as that allows: bytes that were not fsynced, and names
whose directory was not fsynced, survive a crash or not, each on its own. A failed fsync drops what it should
have written, and the next one succeeds nevertheless, as Linux does.

    model = PosixModel(crash_at=17)
    try:
        LocalBackend("/store", create=True, calls=model).put("packs/aa/x", [b"…"])
    except SimulatedCrash:
        pass
    disk = model.crash(LOSE_ALL)  # or KEEP_ALL, or a number that seeds a random choice
    LocalBackend("/store", calls=disk)
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import random
import stat
from dataclasses import dataclass, field

from casstore.backend.local.syscalls import EntryKind, Status, SystemCalls

LOSE_ALL = "lose all"
KEEP_ALL = "keep all"

DEVICE = 2049
_inodes = itertools.count(2)  # never used again, so that no two files are taken for one
_clock = itertools.count(1_700_000_000)  # one second a call, on all models: time goes on over a crash


class SimulatedCrash(BaseException):
    """The process is gone. Not an Exception: nothing may handle it and go on."""


@dataclass(eq=False)
class _File:
    inode: int
    modified: float
    mode: int
    data: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes]] = field(default_factory=list)  # writes since the last fsync

    def sync(self):
        for offset, written in self.pending:
            _overwrite(self.synced, offset, written)
        self.pending.clear()


@dataclass(eq=False)
class _Directory:
    inode: int
    modified: float
    mode: int
    entries: dict[str, _File | _Directory] = field(default_factory=dict)
    synced: dict[str, _File | _Directory] = field(default_factory=dict)
    pending: list[tuple[str, _File | _Directory | None]] = field(default_factory=list)

    def set(self, name, node):
        if node is None:
            del self.entries[name]
        else:
            self.entries[name] = node
        self.pending.append((name, node))

    def sync(self):
        for name, node in self.pending:
            if node is None:
                self.synced.pop(name, None)
            else:
                self.synced[name] = node
        self.pending.clear()


@dataclass(eq=False)
class _Description:
    node: _File | _Directory
    position: int = 0


def _overwrite(data, offset, written):
    data.extend(bytes(max(0, offset - len(data))))
    data[offset : offset + len(written)] = written


def _error(number, path=None):
    return OSError(number, os.strerror(number), path)


class PosixModel(SystemCalls):
    """One mounted disk. `calls` lists the names of the calls so far, failed ones included.

    `crash_at` is the index of the call at which the process stops, before the call has any effect.
    `errors` maps the index of a call to the error number that it fails with. `fail` says it by name.
    `short` is the most that one read or write moves. `room` says whether there is room to spare, as for ballast.
    """

    has_real_paths = False

    def __init__(self, *, crash_at=None, errors=None, short=None, file_system="ext4", room=False, _root=None):
        self.crash_at = crash_at
        self.errors = dict(errors or {})
        self.short = short
        self.room = room
        self.file_system = file_system
        self.calls: list[str] = []
        self._by_name: list[tuple[str, int, int]] = []
        self._crashed = False
        self._clock = float(next(_clock))
        self._descriptors: dict[int, _Description] = {}
        self._next_descriptor = 1000
        self._locks: dict[int, dict[_Description, int]] = {}
        self._root = _root if _root is not None else _Directory(1, self._clock, stat.S_IFDIR | 0o755)

    # ---- faults

    def fail(self, name, number, *, nth=0):
        """Let the `nth` call of this name from now on fail with an error number."""
        self._by_name.append((name, self.calls.count(name) + nth, number))

    def _enter(self, name, path=None):
        if self._crashed or len(self.calls) == self.crash_at:
            self._crashed = True
            raise SimulatedCrash(f"at call {len(self.calls)}, {name}")
        index, nth = len(self.calls), self.calls.count(name) if self._by_name else 0
        self.calls.append(name)
        self._clock = float(next(_clock))
        number = self.errors.get(index)
        for wanted, at, by_name in self._by_name:
            if (wanted, at) == (name, nth):
                number = by_name
        return number

    def _check(self, name, path=None):
        number = self._enter(name, path)
        if number is not None:
            raise _error(number, path)

    def kill(self):
        """Return the file system after the process was killed: nothing is lost, nothing is synced."""
        return PosixModel(file_system=self.file_system, _root=self._root)

    def crash(self, choice=LOSE_ALL):
        """Return the disk after a power failure. `choice` decides what survives of what was not synced."""
        chance = random.Random(choice)
        copies: dict[int, _File | _Directory] = {}

        def survives():
            return choice == KEEP_ALL or (choice != LOSE_ALL and chance.random() < 0.5)

        def copy(node):
            if node.inode in copies:
                return copies[node.inode]
            if isinstance(node, _File):
                data = bytearray(node.synced)
                for offset, written in node.pending:
                    if survives():
                        torn = choice != KEEP_ALL and chance.random() < 0.5
                        kept = written[: chance.randrange(1, len(written) + 1)] if torn else written
                        _overwrite(data, offset, kept)
                twin = _File(node.inode, node.modified, node.mode, data, bytearray(data))
                copies[node.inode] = twin
                return twin
            entries = dict(node.synced)
            for name, child in node.pending:
                if survives():
                    if child is None:
                        entries.pop(name, None)
                    else:
                        entries[name] = child
            twin = _Directory(node.inode, node.modified, node.mode)
            copies[node.inode] = twin
            for name, child in entries.items():
                twin.entries[name] = copy(child)
            twin.synced = dict(twin.entries)
            return twin

        return PosixModel(file_system=self.file_system, _root=copy(self._root))

    def tree(self):
        """Return path → bytes of every file, for assertions; counts as no call."""
        found = {}

        def visit(directory, path):
            for name, node in directory.entries.items():
                if isinstance(node, _File):
                    found[f"{path}/{name}"] = bytes(node.data)
                else:
                    visit(node, f"{path}/{name}")

        visit(self._root, "")
        return found

    def mode(self, path):
        """Return the permission bits of a path, for assertions; counts as no call."""
        return stat.S_IMODE(self._find(path).mode)

    def open_descriptors(self):
        """Return how many descriptors are open, for assertions."""
        return len(self._descriptors)

    # ---- names

    def _find(self, path):
        node = self._root
        for name in path.split("/"):
            if not name:
                continue
            if isinstance(node, _File):
                raise _error(errno.ENOTDIR, path)
            if name not in node.entries:
                raise _error(errno.ENOENT, path)
            node = node.entries[name]
        return node

    def _parent(self, path):
        above, _, name = path.rstrip("/").rpartition("/")
        directory = self._find(above)
        if isinstance(directory, _File):
            raise _error(errno.ENOTDIR, path)
        return directory, name

    def _describe(self, fd):
        if fd not in self._descriptors:
            raise _error(errno.EBADF)
        return self._descriptors[fd]

    @staticmethod
    def _status(node):
        size = len(node.data) if isinstance(node, _File) else 0
        return Status(node.mode, size, node.modified, DEVICE, node.inode)

    # ---- the calls

    def open(self, path, flags, mode=0o600):
        self._check("open", path)
        directory, name = self._parent(path)
        node = directory.entries.get(name) if name else directory
        if node is None:
            if not flags & os.O_CREAT:
                raise _error(errno.ENOENT, path)
            node = _File(next(_inodes), self._clock, stat.S_IFREG | mode)
            directory.set(name, node)
        elif flags & os.O_CREAT and flags & os.O_EXCL:
            raise _error(errno.EEXIST, path)
        if flags & os.O_DIRECTORY and isinstance(node, _File):
            raise _error(errno.ENOTDIR, path)
        self._next_descriptor += 1
        self._descriptors[self._next_descriptor] = _Description(node)
        return self._next_descriptor

    def close(self, fd):
        number = self._enter("close")
        description = self._describe(fd)
        # The descriptor is gone whatever close returns.
        del self._descriptors[fd]
        self._locks.get(description.node.inode, {}).pop(description, None)
        if number is not None:
            raise _error(number)

    def write(self, fd, parts):
        self._check("write")
        description = self._describe(fd)
        data = b"".join(parts[:1024])[: self.short]
        node, offset = description.node, description.position
        node.data[offset : offset + len(data)] = data
        node.pending.append((offset, data))
        node.modified = self._clock
        description.position += len(data)
        return len(data)

    def pread(self, fd, length, offset):
        self._check("pread")
        node = self._describe(fd).node
        if isinstance(node, _Directory):
            raise _error(errno.EISDIR)
        return bytes(node.data[offset : offset + length][: self.short])

    def pread_into(self, fd, buffer, offset):
        self._check("pread_into")
        data = self._describe(fd).node.data[offset : offset + buffer.nbytes][: self.short]
        buffer[: len(data)] = data
        return len(data)

    def fsync(self, fd):
        number = self._enter("fsync")
        node = self._describe(fd).node
        if number is not None:
            # What should have been written is neither on the disk nor dirty any more.
            node.pending.clear()
            raise _error(number)
        node.sync()

    def start_writeback(self, fd, offset, length):
        self._check("start_writeback")

    def fstat(self, fd):
        self._check("fstat")
        return self._status(self._describe(fd).node)

    def stat(self, path, *, follow=True):
        self._check("stat", path)
        return self._status(self._find(path))

    def fchmod(self, fd, mode):
        self._check("fchmod")
        node = self._describe(fd).node
        node.mode = stat.S_IFMT(node.mode) | mode

    def chmod(self, path, mode):
        self._check("chmod", path)
        node = self._find(path)
        node.mode = stat.S_IFMT(node.mode) | mode

    def link(self, source, target):
        self._check("link", target)
        node = self._find(source)
        directory, name = self._parent(target)
        if name in directory.entries:
            raise _error(errno.EEXIST, target)
        directory.set(name, node)

    def rename(self, source, target):
        self._check("rename", target)
        self._move(source, target)

    def rename_exclusive(self, source, target):
        self._check("rename_exclusive", target)
        directory, name = self._parent(target)
        if name in directory.entries:
            raise _error(errno.EEXIST, target)
        self._move(source, target)

    def _move(self, source, target):
        node = self._find(source)
        into, new = self._parent(target)
        out_of, old = self._parent(source)
        into.set(new, node)
        out_of.set(old, None)

    def unlink(self, path):
        self._check("unlink", path)
        directory, name = self._parent(path)
        if name not in directory.entries:
            raise _error(errno.ENOENT, path)
        if isinstance(directory.entries[name], _Directory):
            raise _error(errno.EISDIR, path)
        directory.set(name, None)

    def mkdir(self, path, mode):
        self._check("mkdir", path)
        directory, name = self._parent(path)
        if name in directory.entries:
            raise _error(errno.EEXIST, path)
        directory.set(name, _Directory(next(_inodes), self._clock, stat.S_IFDIR | mode))

    def rmdir(self, path):
        self._check("rmdir", path)
        directory, name = self._parent(path)
        if not isinstance(directory.entries[name], _Directory):
            raise _error(errno.ENOTDIR, path)
        if directory.entries[name].entries:
            raise _error(errno.ENOTEMPTY, path)
        directory.set(name, None)

    def scandir(self, path):
        self._check("scandir", path)
        node = self._find(path)
        if isinstance(node, _File):
            raise _error(errno.ENOTDIR, path)
        return [(name, self._status(child)) for name, child in node.entries.items()]

    def scan_kinds(self, path):
        return [
            (name, EntryKind(is_directory=status.is_directory, is_file=status.is_file))
            for name, status in self.scandir(path)
        ]

    def geteuid(self):
        return 1000  # root gives what it makes to others, and looks for them first

    def fchown(self, fd, uid, gid):
        raise NotImplementedError("only root calls this")

    def flock(self, fd, operation):
        self._check("flock")
        description = self._describe(fd)
        holders = self._locks.setdefault(description.node.inode, {})
        if operation & fcntl.LOCK_UN:
            holders.pop(description, None)
            return
        wanted = operation & ~fcntl.LOCK_NB
        for other, held in holders.items():
            if other is not description and fcntl.LOCK_EX in (held, wanted):
                if operation & fcntl.LOCK_NB:
                    raise _error(errno.EWOULDBLOCK)
                raise AssertionError("deadlock: one thread waits for its own lock")
        holders[description] = wanted

    def has_room(self, path, size, files):
        self._check("has_room", path)
        return self.room

    def file_system_type(self, path):
        return self.file_system
