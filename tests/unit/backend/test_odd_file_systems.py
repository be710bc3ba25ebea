"""File systems that refuse what a store asks for first, by whatever error number."""

from __future__ import annotations

import errno
import json
import os
import stat
from contextlib import suppress

import pytest

from casstore.backend import LocalBackend
from casstore.backend.local.syscalls import SystemCalls
from casstore.cache.olive.output import _rename_new
from casstore.cache.views import write_view
from casstore.errors import BackendError, ConfigError, ObjectExists
from casstore.machine.state import MachineState
from casstore.store.identity import identify
from casstore.store.model_store import ModelStore

KEY = "packs/ab/" + "ab" * 32

REFUSALS = [
    errno.EXDEV, errno.EIO, errno.EINVAL, errno.EACCES, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK,
    errno.EFAULT, errno.ENODEV, errno.EBADF, errno.ENOTTY,
]  # fmt: skip
"""EXDEV is OpenAFS's and BeeGFS's answer to link(2), EIO rclone's, EPERM FAT's."""

REAL = [errno.ENOSPC, errno.EDQUOT, errno.EROFS]


def refusing(number, *names, times=None):
    """Return calls of which those with these names fail, the first `times` of them or all."""
    calls = SystemCalls()
    calls.asked = []

    def refuse(name):
        real = getattr(calls, name)

        def call(*arguments, **options):
            calls.asked.append(name)
            if times is None or calls.asked.count(name) <= times:
                raise OSError(number, os.strerror(number))
            return real(*arguments, **options)

        setattr(calls, name, call)

    for name in names:
        refuse(name)
    return calls


def use(calls, root, **options):
    """Make a store, add to it, and find that nothing is overwritten; return the backend."""
    backend = LocalBackend(root, create=True, calls=calls, **options)
    identity = identify(backend, create=True)
    store = ModelStore(backend, store_id=identity.store_id, machine=MachineState(None))
    model = root.parent / "model"
    model.write_bytes(b"x" * 1000)
    for _ in range(2):
        store.add(model, ref="tags/t")
    backend.put(KEY, [b"x"])
    with pytest.raises(ObjectExists):
        backend.put(KEY, [b"y"])
    assert backend.read(KEY) == b"x"
    assert list((root / ".tmp").iterdir()) == []
    return backend


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.mark.parametrize("number", REFUSALS)
def test_no_links(root, number):
    calls = refusing(number, "link")
    backend = use(calls, root)
    assert backend.creates_exclusively
    assert calls.asked.count("link") == 1, "asked once, then known"
    backend.create("refs/x", [b"x"])
    with pytest.raises(ObjectExists):
        backend.create("refs/x", [b"y"])


@pytest.mark.parametrize("number", REFUSALS)
def test_neither_links_nor_a_rename_that_does_not_replace(root, number):
    backend = use(refusing(number, "link", "rename_exclusive"), root)
    assert not backend.creates_exclusively
    with pytest.raises(ConfigError, match="neither links nor"):
        backend.create("refs/x", [b"x"])
    assert list((root / ".tmp").iterdir()) == []
    assert [entry.key for entry in backend.list("refs/x/")] == []
    hidden = [name for _, _, names in os.walk(root / "refs") for name in names if name.startswith(".")]
    assert hidden == []


@pytest.mark.parametrize("number", [*REFUSALS, *REAL])
def test_no_way_at_all(root, number):
    backend = LocalBackend(root, create=True, calls=refusing(number, "link", "rename_exclusive", "rename"))
    with pytest.raises(BackendError, match="Cannot publish"):
        backend.put(KEY, [b"x"])
    assert list(backend.list("packs/")) == []


@pytest.mark.parametrize("number", REAL)
def test_a_full_or_readonly_disk_is_no_missing_operation(root, number):
    calls = refusing(number, "link")
    backend = LocalBackend(root, create=True, calls=calls)
    with pytest.raises(BackendError):
        backend.put(KEY, [b"x"])
    with pytest.raises(BackendError):
        _ = backend.creates_exclusively
    assert calls.asked == ["link", "link"], "no other way is tried, and none is given up"


def test_a_link_whose_answer_got_lost(root):
    class Lossy(SystemCalls):
        def link(self, source, target):
            super().link(source, target)
            raise OSError(errno.EIO, "the answer got lost")

    backend = LocalBackend(root, create=True, calls=Lossy())
    backend.put(KEY, [b"x"])
    assert backend.read(KEY) == b"x"
    assert list((root / ".tmp").iterdir()) == []


@pytest.mark.parametrize("number", REFUSALS)
@pytest.mark.parametrize("shared", [None, "group"])
def test_no_modes(root, number, shared):
    before = os.umask(0o007)
    try:
        if shared:
            # What the group can use already needs no change of mode.
            root.mkdir()
            os.chmod(root, 0o2770)
        use(refusing(number, "fchmod", "chmod"), root, shared=shared)
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EIO])
def test_a_group_that_would_be_kept_out_is_an_error(root, number):
    before = os.umask(0o077)
    try:
        root.mkdir()
        os.chmod(root, 0o2770)
        backend = LocalBackend(root, calls=refusing(number, "fchmod"))
        with pytest.raises(BackendError):
            backend.put(KEY, [b"x"])
    finally:
        os.umask(before)


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_directories_that_take_no_mode_stay_private_where_there_are_modes(root, number):
    class OneMode(SystemCalls):
        def mkdir(self, path, mode):
            if mode != 0o777:
                raise OSError(number, os.strerror(number), path)
            super().mkdir(path, mode)

    use(OneMode(), root)
    for folder, _, names in os.walk(root):
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        for name in names:
            assert stat.S_IMODE(os.stat(os.path.join(folder, name)).st_mode) & 0o077 == 0


def on_directories(number, call):
    """Return calls of which fsync, or open, of directories is refused."""

    class Refusing(SystemCalls):
        def fsync(self, fd):
            if call == "fsync" and stat.S_ISDIR(os.fstat(fd).st_mode):
                raise OSError(number, os.strerror(number))
            super().fsync(fd)

        def open(self, path, flags, mode=0o600):
            if call == "open" and flags & os.O_DIRECTORY:
                raise OSError(number, os.strerror(number), path)
            return super().open(path, flags, mode)

    return Refusing()


@pytest.mark.parametrize(
    "number",
    [errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTSUP, errno.ENOSYS],
)
def test_no_fsync_of_directories(root, number):
    use(on_directories(number, "fsync"), root)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EISDIR])
def test_directories_that_cannot_be_opened_for_fsync(root, number):
    use(on_directories(number, "open"), root)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_failed_fsync_of_a_directory_is_no_missing_operation(root, number):
    LocalBackend(root, create=True)
    backend = LocalBackend(root, calls=on_directories(number, "fsync"))
    with pytest.raises(BackendError):
        backend.put(KEY, [b"x"])
    assert list(LocalBackend(root).list("")) == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EBADF])
def test_one_refusal_among_successes_is_a_failure(root, number):
    class Once(SystemCalls):
        times = 0

        def fsync(self, fd):
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                self.times += 1
                if self.times == 1:
                    raise OSError(number, os.strerror(number))
            super().fsync(fd)

    LocalBackend(root, create=True)
    with pytest.raises(BackendError):
        LocalBackend(root, calls=Once()).put(KEY, [b"x"])


def test_a_descriptor_is_closed_once(root):
    """After close(2) has failed the number is free, and may be another thread's file by now."""
    closed = []

    class Failing(SystemCalls):
        def close(self, fd):
            super().close(fd)
            assert fd not in closed, "closed twice"
            closed.append(fd)
            raise OSError(errno.EIO, "close failed")

        def open(self, path, flags, mode=0o600):
            fd = super().open(path, flags, mode)
            if fd in closed:
                closed.remove(fd)
            return fd

    LocalBackend(root, create=True).put("format", [b"x"])
    backend = LocalBackend(root, calls=Failing())
    works = [
        lambda: backend.put(KEY, [b"x"]),
        lambda: backend.read("format"),
        lambda: backend.delete("format"),
        lambda: backend.creates_exclusively,
        lambda: backend.publish_lock().__enter__(),
        lambda: backend.open_writer().discard(),
        lambda: backend.make_durable(["format"]),
    ]
    for work in works:
        with suppress(BackendError):
            work()
    assert closed


@pytest.mark.parametrize("number", REFUSALS)
def test_saving_an_output_without_links_or_modes(tmp_path, monkeypatch, number):
    """The pipeline's cache gives output files their names in the same way."""

    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    for name in ("link", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    (tmp_path / "made").write_bytes(b"x")
    _rename_new(str(tmp_path / "made"), str(tmp_path / "out"))
    assert (tmp_path / "out").read_bytes() == b"x"
    (tmp_path / "made").write_bytes(b"y")
    with pytest.raises(FileExistsError):
        _rename_new(str(tmp_path / "made"), str(tmp_path / "out"))
    write_view(tmp_path / "view.json", {"x": 1})
    assert json.loads((tmp_path / "view.json").read_text()) == {"x": 1}
