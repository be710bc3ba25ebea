from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import subprocess
import sys
import textwrap

import pytest

from casstore.backend import LocalBackend, open_backend
from casstore.backend.local.syscalls import SystemCalls, find_mount_type
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ConflictError,
    ObjectExists,
    ObjectNotFound,
)

KEY = "packs/ab/" + "ab" * 32


def permissions(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store"


@pytest.fixture
def umask():
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def run(script, *arguments):
    """Run a script in a fresh interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# ---- modes and shape


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_private_by_default(root, umask, mask):
    umask(mask)
    backend = LocalBackend(root, create=True)
    with backend.open_writer() as writer:
        writer.write([b"x"])
        [temporary] = backend.list_temporaries()
        assert permissions(root / temporary.key) == 0o600
        writer.commit(KEY)
    assert permissions(root / KEY) == 0o400
    for directory in (root, root / "packs", root / "packs/ab", root / ".tmp"):
        assert permissions(directory) == 0o700


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_shared_with_the_group_whatever_the_umask(root, umask, mask):
    umask(mask)
    LocalBackend(root, create=True, shared="group").put("format", [b"x"])
    # Later ones learn it from the root.
    backend = LocalBackend(root)
    with backend.open_writer() as writer:
        [temporary] = backend.list_temporaries()
        assert permissions(root / temporary.key) & 0o060 == (0o060 & ~mask)
        writer.commit(KEY)
    with backend.publish_lock():
        assert permissions(root / "gc/.lock") == 0o660
    for file in (root / "format", root / KEY):
        assert permissions(file) == 0o440
    for directory in (root, root / "packs", root / "packs/ab", root / ".tmp", root / "gc"):
        assert permissions(directory) == 0o2770


def test_a_file_system_without_modes(root):
    class NoModes(SystemCalls):
        def fchmod(self, fd, mode):
            raise PermissionError(errno.EPERM, "no modes here")

    backend = LocalBackend(root, create=True, calls=NoModes())
    backend.put(KEY, [b"x"])
    assert backend.read(KEY) == b"x"


def test_no_temporary_is_left(root):
    backend = LocalBackend(root, create=True)
    backend.put(KEY, [b"x"])
    with pytest.raises(ObjectExists):
        backend.put(KEY, [b"y"])
    assert backend.creates_exclusively
    backend.create("refs/x", [b"z"])
    assert list((root / ".tmp").iterdir()) == []
    assert os.stat(root / KEY).st_nlink == 1


def test_no_write_is_long(root):
    sizes = []

    class Measuring(SystemCalls):
        def write(self, fd, parts):
            sizes.append(sum(part.nbytes for part in parts))
            return super().write(fd, parts)

    parts = [bytes([at]) * size for at, size in enumerate([3, (5 << 20) + 1, 0, 1 << 20, 7, 9])]
    backend = LocalBackend(root, create=True, calls=Measuring())
    backend.put(KEY, parts)
    assert backend.read(KEY) == b"".join(parts)
    assert max(sizes) == 1 << 20
    assert len(sizes) <= 9, "short parts go together"


def test_a_root_behind_a_link(root, tmp_path):
    root.mkdir()
    link = tmp_path / "link"
    link.symlink_to(root)
    backend = LocalBackend(link, create=True)
    backend.put(KEY, [b"x"])
    assert LocalBackend(root).read(KEY) == b"x"
    assert [entry.key for entry in backend.list("")] == [KEY]


def test_a_relative_root_stays_where_it_was(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backend = LocalBackend("store", create=True)
    monkeypatch.chdir("/")
    backend.put(KEY, [b"x"])
    assert (root / KEY).read_bytes() == b"x"
    assert backend.url == f"file://{root}"


def test_parents_are_made(tmp_path):
    LocalBackend(tmp_path / "a/b/c", create=True).put(KEY, [b"x"])
    assert (tmp_path / "a/b/c" / KEY).exists()


@pytest.mark.parametrize("bad", ["", "a\0b"])
def test_impossible_roots(bad):
    with pytest.raises(ConfigError):
        LocalBackend(bad, create=True)


def test_a_missing_root(root):
    with pytest.raises(ConfigError, match="create=True"):
        LocalBackend(root)
    assert not root.exists()


@pytest.mark.parametrize("create", [False, True])
def test_a_root_that_is_a_file(root, create):
    root.write_bytes(b"")
    with pytest.raises(ConfigError, match="not a directory"):
        LocalBackend(root, create=create)
    with pytest.raises(BackendError, match="in the way"):
        LocalBackend(root / "below", create=True)


# ---- listing beside other things


def test_files_of_other_programs_are_no_objects(root):
    backend = LocalBackend(root, create=True)
    backend.put(KEY, [b"x"])
    for name in (".DS_Store", "Thumbs.db", "packs/.nfs0001", "packs/ab/Desktop.ini", "packs/é"):
        (root / name).write_bytes(b"?")
    os.mkfifo(root / "packs/fifo")
    (root / "Folder").mkdir()
    (root / "Folder/x").write_bytes(b"?")
    (root / "packs/empty").mkdir()
    assert [entry.key for entry in backend.list("")] == [KEY]


def test_a_dead_link_is_an_outage(root, tmp_path):
    backend = LocalBackend(root, create=True)
    backend.put(KEY, [b"x"])
    disk = tmp_path / "disk"
    (root / "packs").rename(disk)
    (root / "packs").symlink_to(disk)
    assert backend.read(KEY) == b"x"
    assert [entry.key for entry in backend.list("")] == [KEY]
    disk.rename(tmp_path / "unplugged")
    for question in (
        lambda: backend.read(KEY),
        lambda: backend.stat(KEY),
        lambda: list(backend.list("packs/")),
        lambda: list(backend.list("packs/ab/")),
        lambda: list(backend.list("")),
        lambda: backend.delete(KEY),
    ):
        with pytest.raises(BackendUnavailable):
            question()


def test_another_disk_in_its_place_is_an_outage(root):
    class Unmounted(SystemCalls):
        gone = False

        def stat(self, path, *, follow=True):
            status = super().stat(path, follow=follow)
            return status._replace(device=status.device + 1) if self.gone else status

    calls = Unmounted()
    backend = LocalBackend(root, create=True, calls=calls)
    calls.gone = True
    with pytest.raises(BackendUnavailable, match="mounted"):
        list(backend.list(""))
    with pytest.raises(BackendUnavailable, match="mounted"):
        backend.stat(KEY)
    with pytest.raises(BackendUnavailable, match="mounted"):
        backend.put(KEY, [b"x"])
    assert list(root.iterdir()) == [], "nothing is written where the disk should be"


@pytest.mark.parametrize(
    "work",
    [
        lambda backend: backend.put(KEY, [b"x"]),
        lambda backend: backend.creates_exclusively,
        lambda backend: backend.publish_lock(exclusive=False, blocking=True).__enter__(),
    ],
    ids=["put", "probe", "lock"],
)
def test_a_disk_that_goes_away_in_the_middle_is_no_absence(root, work):
    class Unmounted(SystemCalls):
        """From the first name that is given or asked for on, all that is there is an empty mount point."""

        gone = False

        def open(self, path, flags, mode=0o600):
            self.gone = self.gone or path.endswith("/.lock")
            if self.gone:
                raise FileNotFoundError(errno.ENOENT, "gone", path)
            return super().open(path, flags, mode)

        def link(self, source, target):
            self.gone = True
            if "/.tmp/" in target:
                raise FileNotFoundError(errno.ENOENT, "gone", target)
            super().link(source, target)

        def mkdir(self, path, mode):
            if self.gone:
                raise FileNotFoundError(errno.ENOENT, "gone", path)
            super().mkdir(path, mode)

        def stat(self, path, *, follow=True):
            status = super().stat(path, follow=follow)
            return status._replace(device=status.device + 1) if self.gone else status

    backend = LocalBackend(root, create=True, calls=Unmounted())
    with pytest.raises(BackendUnavailable, match="mounted"):
        work(backend)


@pytest.mark.parametrize("step", ["flock", "fstat", "link", "close", "fsync"])
@pytest.mark.parametrize(
    "work",
    [
        lambda backend: backend.put(KEY, [b"x"]),
        lambda backend: backend.creates_exclusively,
    ],
    ids=["put", "probe"],
)
def test_an_interrupt_at_any_step_leaves_no_temporary_file(root, work, step):
    class Interrupted(SystemCalls):
        armed = False

    def interrupt(calls, *arguments):
        done = getattr(SystemCalls, step)(calls, *arguments)
        if calls.armed:
            calls.armed = False
            raise KeyboardInterrupt
        return done

    setattr(Interrupted, step, interrupt)
    calls = Interrupted()
    backend = LocalBackend(root, create=True, calls=calls)
    backend.put("packs/ab/first", [b"x"])
    calls.armed = True
    with contextlib.suppress(KeyboardInterrupt):
        work(backend)
    calls.armed = False
    assert list((root / ".tmp").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.EMFILE, errno.ENOTCONN])
@pytest.mark.parametrize("depth", ["store", "packs", "ab"])
def test_an_error_in_any_directory_ends_the_listing(root, number, depth):
    class Broken(SystemCalls):
        def scandir(self, path):
            if path.rstrip("/").endswith(f"/{depth}"):
                raise OSError(number, os.strerror(number), path)
            return super().scandir(path)

        def scan_kinds(self, path):
            self.scandir(path)
            return super().scan_kinds(path)

    LocalBackend(root, create=True).put(KEY, [b"x"])
    backend = LocalBackend(root, calls=Broken())
    for listing in (backend.list, backend.list_keys):
        with pytest.raises(BackendError) as caught:
            list(listing(""))
        assert type(caught.value) is (AccessDenied if number == errno.EACCES else BackendUnavailable)


def test_a_directory_that_disappears_while_listed(root):
    class Vanishing(SystemCalls):
        def scandir(self, path):
            if path.endswith("/ab/"):
                raise FileNotFoundError(errno.ENOENT, "gone", path)
            return super().scandir(path)

        def scan_kinds(self, path):
            self.scandir(path)
            return super().scan_kinds(path)

    LocalBackend(root, create=True).put(KEY, [b"x"])
    backend = LocalBackend(root, calls=Vanishing())
    for listing in (backend.list, backend.list_keys):
        with pytest.raises(BackendUnavailable, match="disappeared"):
            list(listing("packs/"))


def test_names_are_listed_without_a_stat_for_each_file(root):
    """A directory says what its files are; only links must be followed."""

    class Counting(SystemCalls):
        def scandir(self, path):
            raise AssertionError("every file of this directory would get a stat")

    backend = LocalBackend(root, create=True)
    for number in range(3):
        backend.put(f"packs/{number}", [b"x"])
    (root / "packs" / "3").symlink_to(root / "packs" / "0")
    (root / "packs" / "4").symlink_to(root / "index")
    (root / "index").mkdir()
    os.mkfifo(root / "packs" / "5")
    backend.put("index/x", [b"x"])
    keys = [*(f"packs/{number}" for number in range(4)), "packs/4/x"]
    assert list(LocalBackend(root, calls=Counting()).list_keys("packs/")) == keys
    assert [entry.key for entry in backend.list("packs/")] == keys
    (root / "packs" / "6").symlink_to(root / "nowhere")
    for listing in (backend.list, backend.list_keys):
        with pytest.raises(BackendUnavailable):
            list(listing("packs/"))


def test_a_file_deleted_while_listed_is_gone(root, monkeypatch):
    backend = LocalBackend(root, create=True)
    for number in range(5):
        backend.put(f"packs/{number}", [b"x"])
    entries = os.scandir(root / "packs")
    with entries:
        held = list(entries)
    backend.delete("packs/3")

    class Held(list):
        def __enter__(self):
            return self

        def __exit__(self, *exception):
            return None

    monkeypatch.setattr(os, "scandir", lambda path: Held(held))
    assert [entry.key for entry in backend.list("packs/")] == [f"packs/{n}" for n in (0, 1, 2, 4)]


def test_a_part_of_the_store_on_another_file_system(root):
    class Crossing(SystemCalls):
        def link(self, source, target):
            raise OSError(errno.EXDEV, "Invalid cross-device link")

        rename = rename_exclusive = link

    backend = LocalBackend(root, create=True, calls=Crossing())
    with pytest.raises(BackendError, match="another file system"):
        backend.put(KEY, [b"x"])
    assert list((root / ".tmp").iterdir()) == []


# ---- links


class NoLinks(SystemCalls):
    def link(self, source, target):
        raise PermissionError(errno.EPERM, "no links here")


class NoExclusiveRename(NoLinks):
    def rename_exclusive(self, source, target):
        raise OSError(errno.ENOSYS, "no such call")


def test_without_links_a_rename_that_does_not_replace(root):
    backend = LocalBackend(root, create=True, calls=NoLinks())
    assert backend.creates_exclusively
    backend.create(KEY, [b"first"])
    for write in (backend.put, backend.create):
        with pytest.raises(ObjectExists):
            write(KEY, [b"second"])
    assert backend.read(KEY) == b"first"
    assert list((root / ".tmp").iterdir()) == []


def test_without_either_create_is_refused(root):
    backend = LocalBackend(root, create=True, calls=NoExclusiveRename())
    assert not backend.creates_exclusively
    backend.put(KEY, [b"first"])
    with pytest.raises(ObjectExists):
        backend.put(KEY, [b"second"])
    with pytest.raises(ConfigError):
        backend.create("refs/x", [b"x"])
    assert [entry.key for entry in backend.list("")] == [KEY]
    assert list((root / ".tmp").iterdir()) == []


# ---- processes

RACE = """
    import sys
    from casstore.backend import LocalBackend
    from casstore.errors import ObjectExists
    root, name = sys.argv[1:]
    backend = LocalBackend(root, durability="none")
    for number in range(60):
        backend.put(f"ready/{number}/{name}", [b""])
        while sum(1 for _ in backend.list(f"ready/{number}/")) < 2:
            pass
        try:
            backend.create(f"refs/tags/aa/prod@{number}", [name.encode() * 1000])
        except ObjectExists:
            continue
        print(number)
"""


def test_two_processes_race_to_create(root):
    LocalBackend(root, create=True)
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(RACE), str(root), name], stdout=subprocess.PIPE, text=True
        )
        for name in ("a", "b")
    ]
    won = [set(map(int, racer.communicate(timeout=60)[0].split())) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert won[0] | won[1] == set(range(60))
    assert not won[0] & won[1]
    backend = LocalBackend(root)
    for number in range(60):
        name = b"a" if number in won[0] else b"b"
        assert backend.read(f"refs/tags/aa/prod@{number}") == name * 1000


def test_after_a_fork(root):
    LocalBackend(root, create=True).put(KEY, [b"parent"])
    run(
        """
        import os, sys
        from casstore.backend import LocalBackend, MemoryBackend
        from casstore.backend.fsspec.backend import FsspecBackend
        root = sys.argv[1]
        key = "packs/ab/" + "ab" * 32
        memory = MemoryBackend("m")
        memory.put(key, [b"parent"])
        backends = [LocalBackend(root), FsspecBackend(f"file://{root}"), memory]
        for backend in backends:
            backend.read(key)
        child = os.fork()
        for number, backend in enumerate(backends):
            who = "child" if not child else "parent"
            for turn in range(50):
                assert backend.read(key) == b"parent"
                backend.put(f"refs/{who}/{number}.{turn}", [who.encode()])
            assert len(list(backend.list(f"refs/{who}/"))) >= 50
        if not child:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        """,
        root,
    )
    assert len(list(LocalBackend(root).list("refs/"))) == 200


# ---- the publishers' lock


def test_shared_and_exclusive(root):
    one, two = LocalBackend(root, create=True), LocalBackend(root)
    with one.publish_lock() as first, two.publish_lock(blocking=False) as second:
        assert first
        assert second
        with (
            pytest.raises(ConflictError, match="publishing"),
            two.publish_lock(exclusive=True, blocking=False),
        ):
            pass
    with one.publish_lock(exclusive=True) as held:
        assert held
        for exclusive in (False, True):
            with pytest.raises(ConflictError), two.publish_lock(exclusive=exclusive, blocking=False):
                pass
    with two.publish_lock(exclusive=True, blocking=False) as held:
        assert held
    assert list(one.list("")) == [], "the lock is no object"


def test_the_lock_is_released_by_an_error_and_by_death(root):
    backend = LocalBackend(root, create=True)
    with pytest.raises(KeyError), backend.publish_lock(exclusive=True):
        raise KeyError
    run(
        """
        import os, sys
        from casstore.backend import LocalBackend
        lock = LocalBackend(sys.argv[1]).publish_lock(exclusive=True)
        lock.__enter__()
        os._exit(0)
        """,
        root,
    )
    with backend.publish_lock(exclusive=True, blocking=False) as held:
        assert held


def test_a_forked_child_does_not_keep_the_lock(root):
    run(
        """
        import os, sys
        from casstore.backend import LocalBackend
        backend = LocalBackend(sys.argv[1], create=True)
        reader, writer = os.pipe()
        with backend.publish_lock(exclusive=True):
            child = os.fork()
            if not child:
                os.read(reader, 1)
                os._exit(0)
        with backend.publish_lock(exclusive=True, blocking=False) as held:
            assert held
        os.write(writer, b"x")
        os.waitpid(child, 0)
        """,
        root,
    )


def test_a_lock_file_that_was_replaced_is_taken_again(root):
    class Replacing(SystemCalls):
        times = 0

        def flock(self, fd, operation):
            super().flock(fd, operation)
            self.times += 1
            if self.times == 1:
                os.unlink(root / "gc/.lock")

    calls = Replacing()
    with LocalBackend(root, create=True, calls=calls).publish_lock(exclusive=True) as held:
        assert held
        with pytest.raises(ConflictError), LocalBackend(root).publish_lock(blocking=False):
            pass
    assert calls.times == 3


def test_the_type_of_the_file_system_is_asked_for_once(root):
    """The table of mounts is long on some machines, and each add takes the lock."""
    asked = []

    class Counting(SystemCalls):
        def file_system_type(self, path):
            asked.append(path)
            return super().file_system_type(path)

    backend = LocalBackend(root, create=True, calls=Counting())
    for _ in range(3):
        with backend.publish_lock() as held:
            assert held
        backend.put(f"packs/ab/{os.urandom(32).hex()}", [b"x"])
    assert len(asked) == 1


def test_the_disk_starts_on_the_first_megabytes_of_a_pack(root):
    started = []

    class Counting(SystemCalls):
        def start_writeback(self, fd, offset, length):
            started.append((offset, length))
            super().start_writeback(fd, offset, length)

    with LocalBackend(root, create=True, calls=Counting()).open_writer() as writer:
        for _ in range(40):
            writer.write([bytes(100_000)])
    assert started
    assert [offset for offset, _ in started] == [0, *itertools.accumulate(size for _, size in started)][:-1]
    assert sum(size for _, size in started) >= 3_000_000


class Network(SystemCalls):
    def file_system_type(self, path):
        return "nfs4"


def test_whoever_makes_the_lock_file_does_not_hold_it(root, monkeypatch):
    """Its maker shares the lock like everybody, also in the moment in which it gets its name."""
    one, two = LocalBackend(root, create=True), LocalBackend(root)
    place = one._directory.naming.place

    def seen_at_once(*args, **kwargs):
        left_over = place(*args, **kwargs)
        with two.publish_lock(blocking=False) as held:
            assert held
        return left_over

    monkeypatch.setattr(one._directory.naming, "place", seen_at_once)
    with one.publish_lock() as held:
        assert held


class NoFlock(SystemCalls):
    def flock(self, fd, operation):
        raise OSError(errno.ENOLCK, "no locks")


class UnknownMount(SystemCalls):
    def file_system_type(self, path):
        return None


@pytest.mark.parametrize("calls", [Network(), NoFlock(), UnknownMount()])
def test_who_cannot_lock_says_so_and_nobody_believes_to_be_alone(root, calls):
    near, far = LocalBackend(root, create=True), LocalBackend(root, calls=calls)
    with far.publish_lock(exclusive=True) as held:
        assert not held
    with near.publish_lock(exclusive=True) as held:
        assert held, "a collector that cannot lock deletes nothing at once"
    for _ in range(2):
        with far.publish_lock() as held:
            assert not held
    for exclusive in (False, True):
        with near.publish_lock(exclusive=exclusive) as held:
            assert not held
    assert [entry.key for entry in near.list("")] == ["gc/lockless"]


def test_lock_errors_are_mapped(root):
    class Refused(SystemCalls):
        def open(self, path, flags, mode=0o600):
            if path.endswith(".lock"):
                raise PermissionError(errno.EACCES, "Permission denied")
            return super().open(path, flags, mode)

    backend = LocalBackend(root, create=True, calls=Refused())
    with pytest.raises(AccessDenied), backend.publish_lock():
        pass


def test_mount_types():
    lines = [
        "22 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw",
        "23 22 0:20 / /proc rw - proc proc rw",
        r"40 22 0:50 / /mnt/my\040share rw - nfs4 server:/x rw",
        "41 22 0:51 / /mnt/a rw - cifs //s/a rw",
        "42 41 0:52 / /mnt/a rw - xfs /dev/b rw",
        "broken",
        "1 2 - ext4",
    ]
    assert find_mount_type(lines, "/home/u/store") == "ext4"
    assert find_mount_type(lines, "/mnt/my share/store") == "nfs4"
    assert find_mount_type(lines, "/mnt/my sharestore") == "ext4"
    assert find_mount_type(lines, "/mnt/a") == "xfs", "the later mount hides the earlier"
    assert find_mount_type(lines, "/mnt/ab") == "ext4"
    assert find_mount_type([], "/x") is None


def test_the_mount_of_a_link_is_its_targets(tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/proc")
    assert SystemCalls().file_system_type(str(link)) == "proc"


# ---- temporary files, settle, closing


@pytest.mark.parametrize("key", ["format", ".tmp/", ".tmp/../format", ".tmp/a/b", ".tmp/.x", "tmp/x", KEY])
def test_only_leftovers_can_be_removed_as_leftovers(root, key):
    backend = LocalBackend(root, create=True)
    backend.put("format", [b"x"])
    with pytest.raises(ConfigError):
        backend.remove_temporary(key)
    assert backend.read("format") == b"x"


def test_settling_what_is_absent(root):
    backend = LocalBackend(root, create=True)
    backend.put(KEY, [b"x"])
    with pytest.raises(ObjectNotFound):
        backend.make_durable([KEY, "packs/ff/never"])
    assert not (root / "packs/ff").exists()


def test_readonly_touches_nothing(root):
    LocalBackend(root, create=True).put(KEY, [b"x"])
    before = sorted(str(path) for path in root.rglob("*"))
    root.joinpath(".tmp").rmdir()
    backend = open_backend(root, read_only=True)
    assert backend.read(KEY) == b"x"
    assert backend.stat(KEY).size == 1
    assert [entry.key for entry in backend.list("")] == [KEY]
    assert backend.local_path(KEY) == str(root / KEY)
    assert not backend.creates_exclusively
    assert list(backend.list_temporaries()) == []
    for write in (
        lambda: backend.put("format", [b"x"]),
        lambda: backend.create("format", [b"x"]),
        backend.open_writer,
        lambda: backend.delete(KEY),
        lambda: backend.remove_temporary(".tmp/x"),
        lambda: backend.make_durable([KEY]),
        backend.publish_lock,
        backend.now,
    ):
        with pytest.raises(AccessDenied, match="read_only=True"):
            write()
    assert sorted(str(path) for path in root.rglob("*")) == [path for path in before if ".tmp" not in path]


def test_readonly_makes_no_root(root):
    with pytest.raises(ConfigError):
        open_backend(root, read_only=True)
    with pytest.raises(ConfigError, match="read_only"):
        open_backend(root, read_only=True, create=True)
    assert not root.exists()


def test_readonly_opens_what_cannot_be_written(root):
    class ReadonlyDisk(SystemCalls):
        def _refuse(self, *arguments):
            raise OSError(errno.EROFS, "Read-only file system")

        mkdir = link = unlink = rename = write = _refuse

    LocalBackend(root, create=True).put(KEY, [b"x"])
    backend = LocalBackend(root, calls=ReadonlyDisk())
    assert backend.read(KEY) == b"x"
    with pytest.raises(AccessDenied, match="read-only"):
        backend.delete(KEY)
    with pytest.raises(AccessDenied, match="read-only"):
        backend.put("packs/cd/x", [b"x"])


def test_descriptors_are_closed(root):
    backend = LocalBackend(root, create=True)
    backend.put(KEY, [b"x"])
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    for _ in range(20):
        backend.read(KEY)
        backend.read_into(KEY, memoryview(bytearray(5)))
        with pytest.raises(ObjectNotFound):
            backend.read("packs/ab")
        with pytest.raises(ObjectExists):
            backend.put(KEY, [b"y"])
        with backend.open_writer() as writer:
            writer.write([b"abc"])
        with backend.publish_lock():
            pass
    after = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    assert after == before


def test_a_pipe_in_the_place_of_an_object_is_refused_at_once(tmp_path):
    backend = LocalBackend(tmp_path / "store", create=True)
    backend.put("format", [b"x"])
    os.unlink(tmp_path / "store" / "format")
    os.mkfifo(tmp_path / "store" / "format")
    with pytest.raises(BackendError):
        backend.read("format")
