"""What is special about SFTP: names, extensions that a server may lack, hosts, connections that end."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from servers.cable import cable
from servers.sftp import SftpServer, sftp_server

from casstore.backend import RetryingBackend, RetryPolicy, open_backend
from casstore.errors import (
    AccessDenied,
    BackendError,
    BackendUnavailable,
    ConfigError,
    ObjectExists,
    ObjectNotFound,
)

KEY = "packs/ab/cd"
BIG = np.random.default_rng(3).integers(0, 256, 9 << 20, dtype=np.uint8).tobytes()
NO_LINKS, NO_RENAME = "hardlink@openssh.com", "posix-rename@openssh.com"


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def write(backend, key, data):
    with backend.open_writer() as writer:
        writer.write([data])
        writer.commit(key)


@pytest.fixture
def backend(sftp_server, tmp_path):
    with open_backend(sftp_server.url(tmp_path / "store"), create=True, **sftp_server.options) as backend:
        yield backend


def test_without_links_a_rename_publishes_and_no_writer_can_be_sure(tmp_path, tmp_path_factory):
    with (
        sftp_server(tmp_path_factory.mktemp("server"), without=[NO_LINKS]) as server,
        open_backend(server.url(tmp_path), **server.options) as backend,
    ):
        assert not backend.creates_exclusively
        with pytest.raises(ConfigError, match="only if it is absent"):
            backend.create("refs/x", [b"x"])
        backend.put(KEY, [b"first"])
        write(backend, "packs/ab/big", BIG)
        with pytest.raises(ObjectExists):
            backend.put(KEY, [b"second"])
        assert tree(tmp_path) == ["packs/ab/big", KEY]
        assert backend.read(KEY) == b"first"


def test_a_server_that_can_do_neither_is_refused_but_can_be_read(tmp_path, tmp_path_factory):
    (tmp_path / "format").write_bytes(b"there")
    with (
        sftp_server(tmp_path_factory.mktemp("server"), without=[NO_LINKS, NO_RENAME]) as server,
        open_backend(server.url(tmp_path), **server.options) as backend,
    ):
        assert backend.read("format") == b"there"
        assert not backend.creates_exclusively
        with pytest.raises(ConfigError, match="posix-rename"):
            backend.put(KEY, [b"x"])
        with pytest.raises(ConfigError, match="posix-rename"):
            write(backend, KEY, BIG)
        assert tree(tmp_path) == ["format"]


def test_a_server_without_fsync_is_used(tmp_path, tmp_path_factory):
    with (
        sftp_server(tmp_path_factory.mktemp("server"), without=["fsync@openssh.com"]) as server,
        open_backend(server.url(tmp_path), **server.options) as backend,
    ):
        backend.put(KEY, [b"x"])
        assert backend.read(KEY) == b"x"


def test_what_is_written_is_synced_before_it_gets_its_name(backend, monkeypatch):
    import asyncssh  # noqa: PLC0415  # its class is watched here and nowhere else

    steps = []
    for kind, name in ((asyncssh.SFTPClientFile, "fsync"), (asyncssh.SFTPClient, "link")):
        real = getattr(kind, name)

        async def step(self, *arguments, name=name, real=real):
            steps.append(name)
            return await real(self, *arguments)

        monkeypatch.setattr(kind, name, step)
    backend.put(KEY, [b"x"])
    write(backend, "packs/ab/big", BIG)
    assert steps == ["fsync", "link", "fsync", "link"]


def test_an_unknown_host_is_refused(sftp_server, tmp_path):
    (tmp_path / "known").write_text("")
    options = {**sftp_server.options, "known_hosts": str(tmp_path / "known")}
    with pytest.raises(AccessDenied, match="known_hosts"):
        open_backend(sftp_server.url(tmp_path), **options)
    # As a user finds it who says nothing about hosts: the home of this test knows none.
    del options["known_hosts"]
    with pytest.raises(AccessDenied, match="known_hosts"):
        open_backend(sftp_server.url(tmp_path), **options)


def test_a_user_without_a_key_is_refused(sftp_server, tmp_path):
    with pytest.raises(AccessDenied):
        open_backend(
            sftp_server.url(tmp_path), **{**sftp_server.options, "client_keys": None, "agent_path": None}
        )


def test_no_directory_there(sftp_server, tmp_path):
    with pytest.raises(ConfigError, match="create=True"):
        open_backend(sftp_server.url(tmp_path / "none"), **sftp_server.options)


def test_nobody_listens(sftp_server, tmp_path):
    url = SftpServer(1, sftp_server.folder).url(tmp_path)
    with pytest.raises(BackendUnavailable):
        open_backend(url, opening=RetryPolicy(deadline=0.1), **sftp_server.options)


def test_a_listing_that_meets_an_error_is_an_error(backend, tmp_path, monkeypatch):
    for number in range(30):
        backend.put(f"packs/{number:02x}/x", [b"x"])
    (tmp_path / "store/packs/07").rename(tmp_path / "store/packs/away")
    os.symlink("nowhere", tmp_path / "store/packs/07")
    assert len(list(backend.list("packs/"))) == 30, "links are no objects, and what is there is listed"
    fs = backend.inner._connection.driver.fs
    real = fs._ls

    async def vanishing(path, **kwargs):
        if path.endswith("/09"):
            raise FileNotFoundError(path)
        return await real(path, **kwargs)

    monkeypatch.setattr(fs, "_ls", vanishing)
    with pytest.raises(BackendUnavailable):
        list(backend.inner.list("packs/"))


def test_a_connection_that_ends_is_made_again(sftp_server, tmp_path):
    with cable(sftp_server.port) as line:
        known = (
            (sftp_server.folder / "known_hosts").read_text().replace(str(sftp_server.port), str(line.port))
        )
        (tmp_path / "known").write_text(known)
        options = {**sftp_server.options, "known_hosts": str(tmp_path / "known")}
        url = SftpServer(line.port, sftp_server.folder).url(tmp_path / "store")
        with open_backend(url, create=True, **options) as opened:
            backend = RetryingBackend(opened.inner, RetryPolicy(first_pause=0.01, longest_pause=0.05))
            backend.put(KEY, [b"x"])
            line.cut()
            assert backend.read(KEY) == b"x"
            line.cut()
            assert [entry.key for entry in backend.list("")] == [KEY]
            line.cut()
            backend.create("refs/tags/x@1", [b"mine"])
            for cut_after in (0, 3_000_000, 7_000_000):
                line.cut_after = cut_after
                write(backend, f"packs/ab/{cut_after}", BIG)
                assert backend.read(f"packs/ab/{cut_after}") == BIG
            assert line.connections == 7
            leftovers = [entry.key for entry in backend.list_temporaries()]
            assert len(leftovers) <= 2, "what broke off in the middle, to be found by its age"
            for key in leftovers:
                backend.remove_temporary(key)
            assert tree(tmp_path / "store") == [
                *(f"packs/ab/{number}" for number in (0, 3_000_000, 7_000_000)), KEY, "refs/tags/x@1"
            ]  # fmt: skip


def test_who_may_not_write(sftp_server, tmp_path):
    if os.geteuid() == 0:
        place = "/proc/casstore"  # where even root makes nothing
    else:
        place = tmp_path / "closed/store"
        (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises((AccessDenied, BackendError)):
        open_backend(sftp_server.url(place), create=True, **sftp_server.options)


def test_files_of_others_are_left_out(backend, tmp_path):
    backend.put(KEY, [b"x"])
    for name in (".tmp/left", "packs/Upper", "packs/.hidden", "packs/x y"):
        (tmp_path / "store" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "store" / name).write_bytes(b"?")
    assert [entry.key for entry in backend.list("")] == [KEY]
    assert [entry.key for entry in backend.list_temporaries()] == [".tmp/left"]
    with pytest.raises(ObjectNotFound):
        backend.read("packs/ab")


@pytest.fixture
def channels(monkeypatch):
    """Count the channels that are opened, and let the server refuse those beyond `most`, as sshd does."""
    from asyncssh import ChannelOpenError, SSHClientConnection  # noqa: PLC0415  # watched here and nowhere else

    seen = SimpleNamespace(opened=0, refused=0, most=100)
    real = SSHClientConnection.start_sftp_client

    def start(self, *arguments, **options):
        if seen.opened >= seen.most:
            seen.refused += 1
            raise ChannelOpenError(1, "open failed")
        seen.opened += 1
        return real(self, *arguments, **options)

    monkeypatch.setattr(SSHClientConnection, "start_sftp_client", start)
    return seen


def test_small_requests_share_a_channel(channels, backend):
    backend.put(KEY, [b"x"])
    with ThreadPoolExecutor(24) as threads:
        assert all(entry.size == 1 for entry in threads.map(backend.stat, [KEY] * 200))
        assert set(threads.map(backend.read, [KEY] * 50)) == {b"x"}
    assert channels.opened == 1


@pytest.mark.parametrize("most", [1, 2, 4, 100])
def test_transfers_get_their_own_channels_as_far_as_the_server_allows(channels, backend, most):
    channels.most = most
    keys = [f"packs/ab/{number}" for number in range(6)]
    with ThreadPoolExecutor(len(keys)) as threads:
        for _ in threads.map(lambda key: write(backend, key, key.encode() + BIG), keys):
            pass
        read = threads.map(lambda key: backend.read(key, start=1, length=6 << 20), keys)
        assert list(read) == [(key.encode() + BIG)[1 : 1 + (6 << 20)] for key in keys]
    assert channels.opened == min(most, 1 + len(keys))
    assert (channels.refused > 0) == (most < 1 + len(keys))
    refused = channels.refused
    write(backend, "packs/ab/more", BIG)
    assert channels.refused == refused, "what the server refused once is not asked for again"


def test_directories_are_made_only_when_they_are_missing(backend, tmp_path, monkeypatch):
    from asyncssh import SFTPClient  # noqa: PLC0415  # as above

    made = []
    real = SFTPClient.mkdir

    async def mkdir(self, path, *arguments):
        made.append(str(path).removeprefix(f"{tmp_path}/store/"))
        return await real(self, path, *arguments)

    monkeypatch.setattr(SFTPClient, "mkdir", mkdir)
    backend.put("packs/ab/1", [b"x"])
    assert sorted(set(made)) == [".tmp", "packs", "packs/ab"]
    made.clear()
    backend.put("packs/ab/2", [b"x"])
    assert made == []
    (tmp_path / "store/packs/cd").mkdir()
    backend.put("packs/cd/1", [b"x"])
    assert made == ["packs/cd"], "there already, which is no error"
    assert tree(tmp_path / "store") == ["packs/ab/1", "packs/ab/2", "packs/cd/1"]
