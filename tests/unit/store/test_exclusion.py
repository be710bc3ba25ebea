"""What an add leaves out: patterns as in .gitignore, given or in the folder's .casstoreignore."""

import os

import pytest

from casstore import ConfigError, Store
from casstore.store.adding.exclusion import Exclusion

FILES = [
    "a.bin",
    "run.log",
    "logs/x.txt",
    "deep/logs/y.txt",
    "deep/run.log",
    "deep/keep.log",
    "notes.txt",
    "deep/notes.txt",
]


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


@pytest.fixture
def folder(tmp_path):
    for name in FILES:
        path = tmp_path / "model" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "model"


def paths(store, result):
    return {entry.path for entry in store.model(result.ref).tree.entries}


@pytest.mark.parametrize(
    ("patterns", "left_out"),
    [
        ([], set()),
        (["*.log"], {"run.log", "deep/run.log", "deep/keep.log"}),
        (["*.log", "!keep.log"], {"run.log", "deep/run.log"}),
        (["logs/"], {"logs/x.txt", "deep/logs/y.txt"}),
        (["/logs"], {"logs/x.txt"}),
        (["/notes.txt"], {"notes.txt"}),
        (["deep/*.log"], {"deep/run.log", "deep/keep.log"}),
        (["**/y.txt"], {"deep/logs/y.txt"}),
        (["deep"], {name for name in FILES if name.startswith("deep/")}),
        (["# a comment", ""], set()),
    ],
)
@pytest.mark.parametrize("how", ["option", "file"])
def test_patterns(store, folder, patterns, left_out, how):
    if how == "file":
        (folder / ".casstoreignore").write_text("\n".join(patterns), encoding="utf-8")
    exclude = patterns if how == "option" else ()
    result = store.add(folder, exclude=exclude)
    assert paths(store, result) == set(FILES) - left_out
    assert store.content_id(str(folder), exclude=exclude) == result.model_id


def test_an_option_comes_behind_the_file(store, folder):
    (folder / ".casstoreignore").write_text("*.log\n*.txt\n", encoding="utf-8")
    assert paths(store, store.add(folder, ref="one", exclude=["!keep.log"])) == {"a.bin", "deep/keep.log"}
    assert paths(store, store.add(folder, ref="all", ignore_file=False)) == {*FILES, ".casstoreignore"}


def test_the_file_counts_at_the_top_of_what_is_added_only(store, folder):
    (folder / "deep" / ".casstoreignore").write_text("*\n", encoding="utf-8")
    assert paths(store, store.add(folder)) == {*FILES, "deep/.casstoreignore"}
    (folder / ".casstoreignore").write_text("*\n", encoding="utf-8")
    result = store.add({"part": str(folder)}, exclude=["*.txt"])
    expected = {f"part/{name}" for name in (*FILES, ".casstoreignore", "deep/.casstoreignore")}
    assert paths(store, result) == {name for name in expected if not name.endswith(".txt")}


def test_what_is_left_out_is_not_looked_at(store, folder):
    """A log that is written to, a pipe, a dead link, a name that is not text, a loop: none of them matters."""
    os.mkfifo(folder / "pipe.log")
    (folder / "dead.log").symlink_to("nowhere")
    (folder / "logs" / "loop").symlink_to("..")
    with open(os.fsencode(folder) + b"/\xff.log", "wb"):
        pass
    with pytest.raises(ConfigError):
        store.add(folder)
    result = store.add(folder, exclude=["*.log", "logs/"])
    assert paths(store, result) == {"a.bin", "notes.txt", "deep/notes.txt"}
    assert paths(store, store.add(folder, exclude=["*.log", "logs/"], follow_links=False)) == paths(
        store, result
    )


def test_a_folder_of_which_all_is_left_out_is_not_kept(store, folder):
    (folder / "empty").mkdir()
    assert "empty" in paths(store, store.add(folder))
    assert paths(store, store.add(folder, ref="less", exclude=["x.txt", "/empty/"])) == set(FILES) - {
        "logs/x.txt"
    }


def test_a_backslash_and_spaces_are_characters_of_names(tmp_path):
    exclusion = Exclusion(["x.log"])
    assert exclusion.leaves_out(b"a/x.log", is_folder=False)
    assert not exclusion.leaves_out(rb"a\x.log", is_folder=False)


def test_a_file_that_is_named_itself_is_added(store, folder):
    assert paths(store, store.add(folder / "run.log", exclude=["*.log"])) == {"run.log"}


@pytest.mark.parametrize("pattern", ["!", "[z-a]", "x\\"])
def test_patterns_that_mean_nothing(store, folder, pattern):
    with pytest.raises(ConfigError, match="pattern in exclude cannot be used"):
        store.add(folder, exclude=[pattern])
    (folder / ".casstoreignore").write_text(pattern, encoding="utf-8")
    with pytest.raises(ConfigError, match="casstoreignore cannot be used"):
        store.add(folder)
    assert not store.refs()


@pytest.mark.parametrize("data", [b"\xff\xfe", b"x" * (1 << 21)])
def test_ignore_files_that_are_none(store, folder, data):
    (folder / ".casstoreignore").write_bytes(data)
    with pytest.raises(ConfigError, match="casstoreignore"):
        store.add(folder)


def test_an_ignore_file_with_a_mark_of_its_byte_order_and_windows_lines(store, folder):
    (folder / ".casstoreignore").write_bytes(b"\xef\xbb\xbf*.log\r\n*.txt\r\n")
    assert paths(store, store.add(folder)) == {"a.bin"}
