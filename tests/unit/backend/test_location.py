from __future__ import annotations

import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import contract.backends  # noqa: F401  # registers renames://
import fsspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from casstore import Store
from casstore.backend import (
    LocalBackend,
    MemoryBackend,
    ReadonlyBackend,
    RetryingBackend,
    open_backend,
)
from casstore.backend.fsspec.backend import FsspecBackend
from casstore.backend.local.syscalls import SystemCalls
from casstore.backend.location import Location, azure_location, file_url, parse_location
from casstore.cli import app
from casstore.errors import BackendUnavailable, ConfigError, ObjectExists, StoreNotFound
from casstore.store.identity import identify, store_exists


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("/srv/store", "local", "/srv/store"),
        ("store", "local", "store"),
        ("./a:b/c", "local", "./a:b/c"),
        ("file:///srv/my%20store", "local", "/srv/my store"),
        ("file://localhost/srv", "local", "/srv"),
        ("local:///srv", "local", "/srv"),
        ("FILE:///srv", "local", "/srv"),
        ("memory://x", "memory", "x"),
        ("memory://x/", "memory", "x"),
        ("memory://", "memory", ""),
        ("s3://bucket/a/b", "fsspec", "s3://bucket/a/b"),
        ("S3://Bucket", "fsspec", "s3://Bucket"),
        ("sftp://host:2222/srv", "fsspec", "sftp://host:2222/srv"),
        ("sftp://[::1]/srv", "fsspec", "sftp://[::1]/srv"),
        ("abfs://box@account.dfs.core.windows.net/x", "fsspec", "abfs://box@account.dfs.core.windows.net/x"),
        ("gs://bucket/users/me@example.org", "fsspec", "gs://bucket/users/me@example.org"),
    ],
)
def test_locations(text, kind, target):
    assert parse_location(text) == Location(kind, target)


@pytest.mark.parametrize(
    ("arguments", "url", "options"),
    [
        (("acct1", "box"), "abfs://box@acct1.dfs.core.windows.net", {}),
        (("acct1", "box/some/folder"), "abfs://box@acct1.dfs.core.windows.net/some/folder", {}),
        (("https://acct1.blob.core.windows.net/box",), "abfs://box@acct1.dfs.core.windows.net", {}),
        (("https://acct1.blob.core.windows.net/box/a/b/",), "abfs://box@acct1.dfs.core.windows.net/a/b", {}),
        (("https://acct1.dfs.core.windows.net/box",), "abfs://box@acct1.dfs.core.windows.net", {}),
        (("https://acct1.blob.core.windows.net/", "box"), "abfs://box@acct1.dfs.core.windows.net", {}),
        (("https://acct1.blob.core.windows.net/box", "box"), "abfs://box@acct1.dfs.core.windows.net", {}),
        (
            ("https://acct1.blob.core.chinacloudapi.cn/box",),
            "abfs://box@acct1.dfs.core.chinacloudapi.cn",
            {"account_name": "acct1", "account_host": "acct1.blob.core.chinacloudapi.cn"},
        ),
    ],
)
def test_containers_of_azure(arguments, url, options):
    assert azure_location(*arguments) == (url, options)
    if len(arguments) == 1:
        assert parse_location(arguments[0]) == Location("fsspec", url, options)


@pytest.mark.parametrize(
    "arguments",
    [
        ("acct1",),
        ("acct1", ""),
        ("acct1", "/box"),
        ("acct1", "ab"),
        ("acct1", "a" * 64),
        ("acct1", "Box"),
        ("acct1", "a--b"),
        ("Acct", "box"),
        ("a.b", "box"),
        ("https://acct1.blob.core.windows.net",),
        ("https://acct1.blob.core.windows.net/box", "other"),
        ("https://acct1.blob.core.windows.net/box?sig=SeCrEt",),
        ("http://acct1.blob.core.windows.net/box",),
        ("https://user:SeCrEt@acct1.blob.core.windows.net/box",),
        ("https://example.org/box",),
        ("https://acct1.blob.core.windows.net.example.org/box",),
    ],
)
def test_what_is_no_container_of_azure(arguments):
    with pytest.raises(ConfigError) as caught:
        azure_location(*arguments)
    assert "SeCrEt" not in str(caught.value)


def test_the_url_of_an_azure_container_opens_through_adlfs(monkeypatch):
    opened = []

    class Recorder:
        url = "recorded"
        is_remote = lists_flat = True

        def __init__(self, url, *, create, storage_options):
            opened.append((url, create, storage_options))

    monkeypatch.setattr("casstore.backend.fsspec.backend.FsspecBackend", Recorder)
    open_backend("https://acct1.blob.core.windows.net/box", create=True, account_key="k")
    open_backend("https://acct1.blob.core.usgovcloudapi.net/box/x", account_host="elsewhere")
    assert opened == [
        ("abfs://box@acct1.dfs.core.windows.net", True, {"account_key": "k"}),
        (
            "abfs://box@acct1.dfs.core.usgovcloudapi.net/x",
            False,
            {"account_name": "acct1", "account_host": "elsewhere"},
        ),
    ]


@pytest.mark.parametrize("url", ["http://host/store", "https://host/store"])
def test_the_web_is_only_read_from(url):
    with pytest.raises(ConfigError, match="read_only=True"):
        open_backend(url)


def test_paths_are_never_urls():
    assert parse_location(Path("s3://bucket")) == Location("local", "s3:/bucket")


SECRET = "SeCrEt/with+slash"


@pytest.mark.parametrize(
    "url",
    [
        "s3://user:SeCrEt@bucket/x",
        "s3://SeCrEt@bucket/x",
        "sftp://SeCrEt@host/x",
        "abfs://user:SeCrEt@account/x",
        f"s3://AKIA:{SECRET}@bucket/x",
        "az://box/x?sig=SeCrEt",
        "https://host/x?token=SeCrEt",
        "simplecache::s3://user:SeCrEt@bucket",
        "file://user:SeCrEt@host/x",
        "s3+user:SeCrEt://bucket",
    ],
)
def test_secrets_in_urls_are_refused_and_not_repeated(url):
    with pytest.raises(ConfigError) as caught:
        open_backend(url)
    assert "SeCrEt" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("url", ["simplecache::s3://bucket/x", "filecache::file:///x", "s3://a::file://b"])
def test_chained_urls_are_refused(url):
    with pytest.raises(ConfigError, match="hained"):
        open_backend(url)


@pytest.mark.parametrize("url", ["file://srv/x", "file://", "", "a\0b", "file:///a%00b"])
def test_impossible_places(url):
    with pytest.raises(ConfigError):
        open_backend(url, create=True)


def test_local(tmp_path):
    for place in (tmp_path / "a", str(tmp_path / "a"), f"file://{tmp_path}/a"):
        backend = open_backend(place, create=True)
        assert type(backend) is LocalBackend
        assert backend.url == f"file://{tmp_path}/a"


def test_memory_stores_are_shared_by_name_and_between_threads():
    one = open_backend("memory://test_location", create=True)
    other = open_backend("memory://test_location")
    assert type(one) is MemoryBackend
    lost = []

    def work(number):
        for key in range(200):
            try:
                open_backend("memory://test_location").put(f"k/{key}", [b"%d" % number])
            except ObjectExists:  # counting them is the test
                lost.append(key)

    threads = [threading.Thread(target=work, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lost) == sorted(list(range(200)) * 3)
    assert len(list(other.list("k/"))) == 200
    assert list(open_backend("memory://test_location2").list("")) == []


def test_other_urls_go_to_fsspec_and_are_retried():
    backend = open_backend("renames://test_location/x", create=True)
    assert type(backend) is RetryingBackend
    assert type(backend.inner) is FsspecBackend
    readonly = open_backend("renames://test_location/x", read_only=True)
    assert type(readonly) is ReadonlyBackend
    backend.put("format", [b"x"])
    assert readonly.read("format") == b"x"


@pytest.mark.parametrize(
    ("url", "advice"),
    [
        ("s3://bucket/x", r"casstore\[s3\]"),
        ("az://box/x", r"casstore\[azure\]"),
        ("abfs://box/x", r"casstore\[azure\]"),
        ("gs://bucket/x", r"casstore\[gcs\]"),
        ("gcs://bucket/x", r"casstore\[gcs\]"),
        ("sftp://host/x", r"casstore\[sftp\]"),
        ("ssh://host/x", r"casstore\[sftp\]"),
        ("http://host/x", r"casstore\[http\]"),
        ("nonsense://x", "nonsense"),
    ],
)
def test_what_to_install(url, advice, monkeypatch):
    for module in ("s3fs", "adlfs", "gcsfs", "sshfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, module, None)
    for module in ("sftp_files", "http_files"):
        monkeypatch.delitem(sys.modules, f"casstore.backend.fsspec.drivers.{module}", raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url.split(":")[0], raising=False)
    with pytest.raises(ConfigError, match=advice):
        open_backend(url, read_only=True)


def test_options():
    with pytest.raises(ConfigError, match="read_only=True"):
        open_backend("memory://x", readonly=True)
    with pytest.raises(ConfigError, match="durability"):
        open_backend("memory://x", durability="half")
    with pytest.raises(ConfigError, match="shared"):
        open_backend("memory://x", shared="world")
    with pytest.raises(ConfigError, match="anon"):
        open_backend("/srv/x", anon=True)


def test_storage_options_that_the_file_system_refuses():
    class Picky(fsspec.AbstractFileSystem):
        def __init__(self, *, needed, **options):
            super().__init__(**options)

    fsspec.register_implementation("picky", Picky, clobber=True)
    with pytest.raises(ConfigError, match="storage options"):
        open_backend("picky://x", create=True)


def test_fsspec_is_imported_only_when_needed(tmp_path):
    script = (
        "import sys; from casstore.backend import open_backend\n"
        "open_backend(sys.argv[1], create=True).put('format', [b'x']); open_backend('memory://x')\n"
        "assert 'casstore.backend.fsspec.backend' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "s")], check=True, timeout=60)


@pytest.mark.parametrize(
    "place",
    [
        "cas://models/x",
        "CAS://models/x",
        "cas://",
        "cas::s3://bucket",
        "cas::/srv/store",
        "zip::/srv/store.zip",
        "simplecache::/srv/store",
        "cas://models/x::cas://models/y",
        *(
            f"{protocol}://x"
            for protocol in (
                "simplecache", "filecache", "blockcache", "cached", "reference", "zip", "tar", "libarchive", "dir",
                "data", "generic", "async_wrapper", "asynclocal",
            )
        ),
    ],
)  # fmt: skip
def test_what_only_shows_another_place_is_no_place_for_a_store(place):
    for open_it in (parse_location, open_backend, Store, store_exists):
        with pytest.raises(ConfigError, match=r"cannot hold a store|cannot: name the storage"):
            open_it(place)


@pytest.mark.parametrize("how", ["option", "variable", "chained"])
def test_a_store_that_is_itself(how, monkeypatch):
    """`cas://` as the store of `cas://` would ask itself for ever."""
    options = {"skip_instance_cache": True}
    if how == "option":
        options["store"] = "cas://models/x"
    elif how == "variable":
        monkeypatch.setenv("CASSTORE_STORE", "cas://models/x")
    else:
        options |= {"fo": "models/x", "target_protocol": "cas"}
    with pytest.raises(ConfigError, match="cas:// cannot hold a store"):
        fsspec.filesystem("cas", **options)


def test_a_path_with_colons_is_still_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("./cas::x", "a b::x", f"{tmp_path}/zip::x", "12:30", "a:b"):
        assert parse_location(place) == Location("local", place)


ODD_NAMES = [
    "%41", "a%2Fb", "100%", "a b", "é", "a#b?c=d", "new\nline", "tab\t", "\x7f", "\x85", "a;b&c", "~",
    os.fsdecode(b"latin-\xe9"), os.fsdecode(b"\xff\xfe"), "::", "a::b", "[x]", "cas:", "back\\slash",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_store_opens_by_its_own_url(tmp_path, name):
    with Store(f"{tmp_path}/{name}", create=True) as store:
        url = store.backend.url
        assert url.isprintable()
        url.encode("utf-8")
        store_id = store.store_id
        assert store.machine.keeps
        assert store.refs() == {}
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]
    assert store_exists(url)
    with Store(url) as store:
        assert (store.store_id, store.backend.url) == (store_id, url)
    assert os.listdir(os.fsencode(tmp_path)) == [os.fsencode(name)]


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name))
def test_every_path_has_a_url(name):
    path = "/" + os.fsdecode(name)
    assert parse_location(file_url(path)) == Location("local", path)


def test_a_path_that_no_file_can_have():
    with pytest.raises(ConfigError, match="cannot be the path"):
        LocalBackend("/tmp/\ud800", create=True)


def test_the_command_line_shows_odd_places_escaped(tmp_path):
    place = f"{tmp_path}/{os.fsdecode(b'x-%-' + bytes([0xE9]))}"
    result = CliRunner().invoke(app, ["init", "--store", place])
    assert result.exit_code == 0, result.output
    assert "x-%25-%E9" in result.output
    result = CliRunner().invoke(app, ["ls", "--store", f"{place}-not"])
    assert result.exit_code == 1
    assert "unexpected" not in result.stderr


# ---- is there a store?


def test_store_exists_makes_nothing(tmp_path):
    assert not store_exists(tmp_path / "nowhere")
    assert not store_exists(tmp_path)
    assert list(tmp_path.iterdir()) == []
    Store(tmp_path / "s", create=True).close()
    before = sorted(os.walk(tmp_path))
    assert store_exists(tmp_path / "s")
    assert sorted(os.walk(tmp_path)) == before
    assert not store_exists("memory://nothing-there")


def test_opening_without_create_makes_nothing(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        for options in ({}, {"read_only": True}):
            with pytest.raises(StoreNotFound):
                Store(place, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_store_out_of_reach_is_not_absent(tmp_path):
    (tmp_path / "mnt").symlink_to(tmp_path / "unplugged")
    for place in (tmp_path / "mnt", tmp_path / "mnt/store"):
        with pytest.raises(BackendUnavailable, match="link that leads nowhere"):
            store_exists(place)

    class Outage:
        def __init__(self, *_, **__):
            raise BackendUnavailable("no route to host", retryable=False)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("casstore.backend.fsspec.backend.FsspecBackend", Outage)
        with pytest.raises(BackendUnavailable):
            store_exists("s3://bucket")


# ---- what is no obstacle to a new store

LEFT = ["lost+found/#1234", "lost+found/x", ".Trash-1000/files/x", "System Volume Information/x", ".DS_Store",
        ".snapshot/x", "$RECYCLE.BIN/x", "desktop.ini", "Thumbs.db", "thumbs.db", "aquota.user", ".fseventsd/x",
        ".Spotlight-V100/x", "quota.group"]  # fmt: skip


@pytest.mark.parametrize("name", LEFT)
def test_what_systems_leave_on_a_volume(tmp_path, name):
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_bytes(b"x")
    with Store(tmp_path, create=True) as store:
        assert store.refs() == {}
        assert [key for key in store.backend.list_keys("") if key.startswith("lost")] == []
    assert file.read_bytes() == b"x"


def test_a_closed_lost_and_found(tmp_path):
    """mkfs gives it to root alone; whoever lists the store cannot look into it."""

    class Closed(SystemCalls):
        def scandir(self, path):
            if "lost+found" in path:
                raise PermissionError(13, "Permission denied", path)
            return super().scandir(path)

        scan_kinds = scandir

    (tmp_path / "lost+found").mkdir()
    backend = LocalBackend(tmp_path, create=True, calls=Closed())
    identify(backend, create=True)
    assert "format" in {entry.key for entry in backend.list("")}


@pytest.mark.parametrize("name", ["model.bin", "data/x", "quota.users"])
def test_other_things_are_an_obstacle(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not empty"):
        Store(tmp_path, create=True)
