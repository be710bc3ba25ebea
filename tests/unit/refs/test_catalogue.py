"""What the catalogue saves, and what it must not change."""

from __future__ import annotations

import os
import sqlite3
from dataclasses import replace
from itertools import product

import pytest
from fakes.faulty_backend import FaultyBackend

from casstore import ConfigError, RefNotFound, Store
from casstore.backend import MemoryBackend
from casstore.errors import FormatError, ObjectNotFound
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.machine import state as machine_module
from casstore.machine.state import MachineState
from casstore.refs import catalogue as catalogue_module
from casstore.refs.refs import Refs
from casstore.refs.rows import RefQuery, RefRow


@pytest.fixture
def backend(request):
    return FaultyBackend(MemoryBackend(f"test_catalogue/{request.node.name}"))


@pytest.fixture
def machine(tmp_path):
    state = MachineState(str(tmp_path / "machine" / "state.sqlite"))
    yield state
    state.close()


@pytest.fixture
def refs(backend, machine):
    return Refs(backend, machine)


def put(refs, name, *, target=b"\1" * 32, **rest):
    record = refs.draft(name, target=target, **rest)
    refs.put(record)
    return record


def found(refs, *args, **named):
    return [row.name for row in refs.find(RefQuery(*args, **named), newest_first=False)]


def calls(backend, work):
    """Return the answer of `work`, and the names of the calls it made."""
    before = len(backend.calls)
    answer = work()
    return answer, [name for name, _ in backend.calls[before:]]


# ---- what it saves


def test_a_listing_reads_no_record_that_was_read_before(refs, backend, machine):
    for number in range(20):
        put(refs, f"runs/{number}")
    assert calls(backend, lambda: len(found(refs)))[1] == ["list"], "each put keeps what it wrote"
    others = Refs(backend, MachineState(None))
    put(others, "runs/20")
    put(others, "runs/3", target=None)
    assert calls(backend, lambda: len(found(refs))) == (20, ["list", "read", "read"])
    again = Refs(backend, MachineState(machine._path))
    assert calls(backend, lambda: len(found(again, "runs/"))) == (20, ["list"])
    assert calls(backend, lambda: len(again.values("runs/"))) == (20, ["list"])
    assert calls(backend, lambda: again.naming("01")[0]) == ([], ["list", "list"])


def test_only_exclusive_records_are_read_each_time(refs, backend):
    """The number of a tag recurs, so its name says nothing of what is in it."""
    record = put(refs, "tags/a")
    assert record.exclusive
    for _ in range(2):
        assert found(refs) == ["tags/a"]
    assert calls(backend, lambda: found(refs)) == (["tags/a"], ["list", "read"])
    backend.inner.delete(record.key)
    backend.inner.put(record.key, [record_format.encode(replace(record, target=b"\2" * 32))])
    [row] = refs.find(RefQuery())
    assert row.target == b"\2" * 32


def test_writing_a_run_lists_its_folder_once(refs, backend):
    put(refs, "runs/a")
    _, made = calls(backend, lambda: put(refs, "runs/a", target=b"\2" * 32))
    assert made == ["list", "put"], "what was drafted here and never written cannot be there"
    assert calls(backend, lambda: refs.value("runs/a").target) == (b"\2" * 32, ["list"])


# ---- what it must not change


def test_only_the_newest_record_must_be_readable(refs, backend, tmp_path):
    put(refs, "models/a")
    old, new = (put(refs, "models/b", target=bytes([number]) * 32) for number in (2, 3))
    questions = (
        found,
        Refs.values,
        lambda refs: refs.naming("03")[0],
        lambda refs: refs.value("models/b").seq,
    )
    backend.inner._objects[old.key] = (b"torn", 0.0)
    wanted = [question(refs) for question in questions]
    for number, path in enumerate((None, str(tmp_path / "other.sqlite"))):
        assert [question(Refs(backend, MachineState(path))) for question in questions] == wanted, number
    backend.inner._objects[new.key] = (b"torn", 0.0)
    for path in (None, str(tmp_path / "third.sqlite")):
        state = MachineState(path)
        for question in questions:
            told = []
            client = Refs(backend, state)
            client.on_damage = told.append
            if question is questions[-1]:
                with pytest.raises(FormatError, match="models/b cannot be read"):
                    question(client)
            else:
                assert "models/b" not in question(client), "never replaced by its elder"
                assert {(damage.name, damage.key) for damage in told} == {("models/b", new.key)}
            for work in (Refs.values, lambda refs, **named: refs.find(RefQuery(), **named)):
                with pytest.raises(FormatError, match="models/b cannot be read"):
                    work(client, strict=True)
        state.close()
    assert [question(refs) for question in questions] == wanted, "what was verified once stays known"


def test_a_torn_record_that_is_new_is_told_each_time(refs, backend):
    put(refs, "runs/a")
    found(refs)
    key = names.record_key("runs/b", seq=1, write_id=bytes(16))
    backend.inner.put(key, [b"torn"])
    told = []
    refs.on_damage = told.append
    for _ in range(2):
        assert found(refs) == list(refs.values()) == ["runs/a"]
        assert found(refs, "runs/a") == ["runs/a"], "what is not asked for is not told of"
        assert [damage.key for damage in told] == [key, key]
        told.clear()
    assert calls(backend, lambda: found(refs)) == (["runs/a"], ["list", "read"]), "it may be put right"
    backend.inner.delete(key)
    put(refs, "runs/b")
    told.clear()
    assert sorted(found(refs)) == ["runs/a", "runs/b"]
    assert told == []


def test_a_record_that_is_put_right_under_its_own_name_is_seen(refs, backend):
    put(refs, "runs/a")
    record = refs.draft("runs/b", target=b"\2" * 32)
    backend.inner.put(record.key, [b"torn"])
    told = []
    refs.on_damage = told.append
    assert found(refs) == ["runs/a"]
    assert len(told) == 1
    backend.inner.delete(record.key)
    backend.inner.put(record.key, [record_format.encode(record)])
    assert sorted(found(refs)) == ["runs/a", "runs/b"]
    assert len(told) == 1


DAMAGE = {"empty": lambda data: b"", "torn": lambda data: data[: len(data) // 2]}
DAMAGE["flipped"] = lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:]


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("ref", [*product(["models/b", "tags/b"], [False, True])])
def test_a_damaged_newest_record_blocks_only_itself(backend, tmp_path, damage, warm, ref):
    """Its ref has no value that can be told; it can be written again, and deleted."""
    name, deletion = ref
    writer = Refs(backend, MachineState(None))
    put(writer, "models/a")
    put(writer, name)
    newest = writer.draft(name, target=None if deletion else b"\2" * 32)
    client = Refs(backend, MachineState(str(tmp_path / "state.sqlite")))
    if warm:
        assert found(client) == ["models/a", name]
    writer.put(newest)
    data = backend.inner._objects[newest.key][0]
    for mend in (b"\3" * 32, None):
        backend.inner._objects[newest.key] = (DAMAGE[damage](data), 0.0)
        told = []
        client.on_damage = told.append
        assert found(client) == ["models/a"]
        assert [item.key for item in told] == [newest.key]
        with pytest.raises(FormatError, match="casstore rm"):
            client.value(name)
        with pytest.raises(FormatError, match="casstore rm"):
            client.history(name)
        drafted = client.draft(name, target=mend)
        assert drafted.seq == newest.seq + 1
        client.put(drafted)
        told.clear()
        assert client.value(name) == (drafted if mend else None)
        assert found(client) == (["models/a", name] if mend else ["models/a"])
        assert told == []
        assert [item.seq for item in client.history(name)] == [1, 3], "an elder that is damaged is left out"
        assert [item.key for item in told] == [newest.key]
        backend.inner.delete(drafted.key)


def test_one_of_several_heads_that_is_damaged(backend, tmp_path):
    """What is known to be the value stays it; where the damaged one is the value, there is none to tell."""
    heads = [
        Record(
            "models/x", seq=1, write_id=bytes([number]) * 16, time=1, writer="w", target=bytes([number]) * 32
        )
        for number in (1, 2)
    ]
    for damaged in heads:
        for record in heads:
            data = b"torn" if record is damaged else record_format.encode(record)
            backend.inner._objects[record.key] = (data, 0.0)
        for path in (None, str(tmp_path / f"{damaged.write_id.hex()}.sqlite")):
            refs = Refs(backend, MachineState(path))
            told = []
            refs.on_damage = told.append
            values = refs.values()
            assert {item.key for item in told} == {damaged.key}
            if damaged is heads[0]:
                assert values == {"models/x": heads[1]} == {"models/x": refs.value("models/x")}
            else:
                assert values == {}
                with pytest.raises(FormatError):
                    refs.value("models/x")
            with pytest.raises(FormatError):
                refs.values(strict=True)
            assert refs.draft("models/x", target=b"\5" * 32).seq == 2


FOREIGN = [
    "refs/desktop.ini", "refs/models/desktop.ini", "refs/runs/x", "refs/runs/aa/x", "refs/runs/aa/x@1",
    "refs/runs/aa/b/x@1", "refs/other/aa/x@1", "refs/runs/folder/x", "refs/runs/aa/=ff@0000000000000001",
]  # fmt: skip


@pytest.mark.parametrize("number", [1, 3])
def test_files_that_are_no_records_are_passed_over(refs, backend, number):
    """Wherever they lie, and beside many; the catalogue's rows are as true as before."""
    records = [put(refs, f"{space}/{at}") for space in ("runs", "tags", "models") for at in range(20)]
    own = records[0].key
    foreign = [
        *FOREIGN,
        f"{own}.orig",
        own.replace("@", "@x"),
        own.replace("/0@", "/other@"),  # the record of another ref, in a folder that is not its own
        f"{own}/below",
        records[20].key + "-copy",
    ]
    told = []
    for _ in range(number):
        for key in foreign:
            backend.inner._objects[key] = (b"x", 0.0)
        for client in (refs, Refs(backend, MachineState(None))):
            client.on_damage = told.append
            assert len(found(client)) == len(client.values()) == 60
            assert client.values("runs/") == {record.name: record for record in records[:20]}
            assert client.value("runs/0") == records[0]
            assert client.history("runs/0") == [records[0]]
            assert client.naming("01")[0] == [b"\1" * 32]
            assert client.draft("runs/0", target=b"\1" * 32) == records[0]
        for key in foreign:
            backend.inner.delete(key)
        assert len(found(refs)) == 60
    assert told == []


def test_a_foreign_file_costs_no_listing_its_catalogue(refs, backend):
    put(refs, "runs/a")
    for key in FOREIGN:
        backend.inner.put(key, [b"x"])
    found(refs)
    assert calls(backend, lambda: found(refs)) == (["runs/a"], ["list"])


class TrimsAt(FaultyBackend):
    """Runs an action before it reads a key."""

    key = ""

    def read(self, key, *, start=0, length=None):
        if key == self.key:
            self.key = ""
            self.action()
        return super().read(key, start=start, length=length)


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("work", ["find", "values", "value", "naming"])
def test_a_record_that_is_trimmed_between_listing_and_reading(tmp_path, keeps, work):
    """What replaced it is in the store by then."""
    backend = TrimsAt(MemoryBackend(f"test_catalogue/trim-{keeps}-{work}"))
    writer = Refs(backend.inner, MachineState(None))
    put(writer, "models/b")
    old = put(writer, "models/a", target=b"\2" * 32)

    def replace_it():
        put(writer, "models/a", target=b"\3" * 32)
        backend.inner.delete(old.key)

    backend.key, backend.action = old.key, replace_it
    state = MachineState(str(tmp_path / "state.sqlite") if keeps else None)
    refs = Refs(backend, state)
    if work == "find":
        assert {row.name: row.target[0] for row in refs.find(RefQuery())} == {"models/a": 3, "models/b": 1}
    elif work == "values":
        assert {name: record.target[0] for name, record in refs.values().items()} == {
            "models/a": 3,
            "models/b": 1,
        }
    elif work == "value":
        assert refs.value("models/a").target == b"\3" * 32
    else:
        assert refs.naming("03")[0] == [b"\3" * 32]
    assert backend.key == "", "it was read"
    state.close()


def test_what_is_listed_and_cannot_be_read_is_gone(tmp_path):
    """A listing that lags behind names what was deleted, for as long as it likes."""
    backend = FaultyBackend(MemoryBackend("test_catalogue/lag"))
    writer = Refs(backend.inner, MachineState(None))
    first = put(writer, "runs/a")
    second = put(writer, "runs/a", target=b"\2" * 32)
    put(writer, "runs/b")
    backend.freeze_listings()
    backend.inner.delete(second.key)
    state = MachineState(str(tmp_path / "state.sqlite"))
    for client in (Refs(backend, state), Refs(backend, MachineState(None))):
        assert {row.name: row.target for row in client.find(RefQuery())} == {
            "runs/a": first.target,
            "runs/b": b"\1" * 32,
        }
        assert client.value("runs/a") == first
    state.close()


def test_another_process_drops_a_row_that_was_held(refs, backend, machine, monkeypatch):
    """Its listing was older; nothing is answered from rows that lack one."""
    first = put(refs, "runs/a")
    found(refs)
    other = replace(first, write_id=b"\xff" * 16, target=b"\2" * 32)
    backend.put(other.key, [record_format.encode(other)])
    bring = catalogue_module._bring
    turns = []

    def dropped(state, folder):
        if not turns:
            turns.append(folder)
            catalogue_module._delete(state, sorted(catalogue_module._states(state, folder.prefix)))
        bring(state, folder)

    monkeypatch.setattr(catalogue_module, "_bring", dropped)
    assert [row.target for row in refs.find(RefQuery())] == [other.target]
    assert turns
    assert machine.run(lambda state: state.execute("SELECT count(*) FROM records").fetchone(), None) == (2,)
    assert machine._renewals == 0


def test_a_catalogue_that_never_comes_to_rest(refs, backend, machine, monkeypatch):
    """Other processes change it under every question: then it is the store that answers."""
    put(refs, "models/0")
    monkeypatch.setattr(catalogue_module, "_bring", lambda *_: None)
    assert found(refs) == ["models/0"]
    assert list(refs.values()) == ["models/0"]
    assert refs.naming("01")[1].name == "models/0"


# ---- the file


def sql(machine, statement):
    machine.run(lambda state: state.execute(statement), None, writes=True)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM records WHERE name = 'runs/1'",
        "UPDATE records SET state = 0 WHERE name = 'runs/1'",
        "UPDATE records SET time = time + 1",
        "UPDATE records SET base = target",
        "UPDATE records SET metadata = '{}'",
        "UPDATE records SET name = 'runs/9' WHERE name = 'runs/1'",
    ],
)
def test_rows_that_cannot_be_true_make_the_file_anew(refs, machine, caplog, statement):
    for number in range(3):
        put(refs, f"runs/{number}", metadata={"number": number})
    rows = refs.find(RefQuery())
    sql(machine, statement)
    assert refs.find(RefQuery()) == rows
    assert machine.keeps
    assert machine._renewals == 1
    [message] = [record.getMessage() for record in caplog.records]
    assert "safe to delete" in message
    assert refs.find(RefQuery()) == rows
    assert machine._renewals == 1


def test_bytes_that_are_not_the_records_are_read_again(refs, backend, machine):
    put(refs, "models/a")
    put(refs, "models/b", metadata={"odd": float("nan")})
    wanted = repr(refs.values())
    for statement in ("UPDATE bodies SET data = x'00'", "DELETE FROM bodies"):
        sql(machine, statement)
        assert repr(refs.values()) == wanted
        assert refs.value("models/a").target == b"\1" * 32
        assert refs.naming("01")[1].name == "models/b"
        assert found(refs) == ["models/a", "models/b"]


def test_a_file_that_is_removed_is_made_again(refs, machine):
    put(refs, "runs/a")
    for number in range(3):
        os.unlink(machine._path)
        put(refs, f"runs/{number}")
        assert found(refs)[-1] == f"runs/{number}"
        assert os.path.getsize(machine._path) > 0, "the next process finds it"


def test_a_file_that_breaks_again_and_again_is_left_alone(refs, backend, machine, caplog):
    put(refs, "runs/a")
    for _ in range(2 * machine_module._RENEWALS):
        found(refs)
        if machine.keeps:
            sql(machine, "DELETE FROM records")
        assert found(refs) == ["runs/a"]
    assert not machine.keeps
    assert len(caplog.records) == machine_module._RENEWALS + 1


def test_the_tables_of_another_version_are_made_anew(backend, machine):
    os.makedirs(os.path.dirname(machine._path))
    connection = sqlite3.connect(machine._path)
    connection.execute("CREATE TABLE records (key TEXT PRIMARY KEY, data BLOB)")
    connection.close()
    refs = Refs(backend, machine)
    put(refs, "runs/a")
    assert found(refs) == ["runs/a"]
    assert machine.keeps


# ---- the door


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "store", create=True, durability="none") as opened:
        yield opened


@pytest.fixture
def runs(store):
    """Return the records of five runs, in the order of their times."""
    return [
        store.put_manifest(
            f"runs/{name}",
            name.encode(),
            metadata={
                "status": "done" if number % 2 else "failed",
                "number": number,
                "metrics": {"loss": number / 4},
                "raw": b"\0" if number == 4 else None,
            },
        )
        for number, name in enumerate(["e/1", "d/2", "c", "b", "a"])
    ]


def test_finding_runs(store, runs):
    def names_of(*args, **named):
        return [row.name for row in store.find(*args, **named)]

    assert names_of() == ["runs/a", "runs/b", "runs/c", "runs/d/2", "runs/e/1"], "the newest first"
    assert names_of(newest_first=False) == names_of()[::-1]
    assert names_of(limit=2) == ["runs/a", "runs/b"]
    assert names_of(limit=2, newest_first=False) == ["runs/e/1", "runs/d/2"]
    assert names_of(limit=0) == []
    assert names_of("runs/d") == ["runs/d/2"]
    assert names_of("models/") == names_of("nothing") == []
    assert names_of(where={"status": "done"}) == ["runs/b", "runs/d/2"]
    assert names_of(where={"status": "failed"}, limit=1) == ["runs/a"]
    assert names_of(where={"status": "failed", "number": 2}) == ["runs/c"]
    assert names_of(where={"metrics.loss": 0.75}) == ["runs/b"]
    assert names_of(where={"metrics.loss": 1}) == ["runs/a"], "as Python compares"
    assert names_of(where={"metrics": {"loss": 0.25}}) == ["runs/d/2"]
    assert names_of(where={"raw": b"\0"}) == ["runs/a"]
    assert names_of(where={"raw": None}, limit=1) == ["runs/b"]
    assert names_of(where={"absent": None, "number.x": None}) == names_of()
    assert names_of(where={"absent": 1}) == []
    assert names_of(target=runs[2].target) == names_of(target=runs[2].target.hex()) == ["runs/c"]
    assert names_of(base=runs[2].target) == []
    assert names_of(since=runs[1].time, until=runs[3].time) == ["runs/c", "runs/d/2"]
    store.rm("runs/c")
    assert "runs/c" not in names_of()


def test_a_row_says_what_the_record_says(store, runs):
    for row, record in zip(store.find(newest_first=False), runs, strict=True):
        assert isinstance(row, RefRow)
        assert (row.name, row.target, row.manifest, row.base, row.time, row.writer, row.metadata) == (
            record.name, record.target, record.manifest, record.base, record.time, record.writer, record.metadata,
        )  # fmt: skip
        row.metadata["status"] = "changed"
        assert row.metadata["status"] == record.metadata["status"]


@pytest.mark.parametrize(
    "asked", [{"limit": -1}, {"target": "abcd"}, {"target": b"x"}, {"base": "G" * 64}, {"base": 5}]
)
def test_questions_that_make_no_sense(store, asked):
    with pytest.raises(ConfigError):
        store.find(**asked)


def test_an_id_among_many_refs(store, tmp_path):
    (tmp_path / "file").write_bytes(b"weights")
    model_id = store.add(tmp_path / "file", ref="models/b").model_id
    store.add(tmp_path / "file", ref="models/a")
    store.tag("best", "models/a")
    for newest in ("tags/best", "models/a", "models/b"):
        assert store.resolve(model_id).ref == store.resolve(model_id[:6]).ref == newest
        store.rm(newest)
    with pytest.raises(RefNotFound):
        store.resolve(model_id[:6])
    with pytest.raises(ObjectNotFound):
        store.backend.read("nothing")
