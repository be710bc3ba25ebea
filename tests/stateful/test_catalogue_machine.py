"""Refs with a catalogue are a plain dict of records, whoever writes and whatever happens to the SQLite file."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fakes.counts import STATEFUL, STEPS
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from casstore.backend import open_backend
from casstore.errors import ConflictError
from casstore.format import record as record_format
from casstore.machine.state import MachineState
from casstore.refs.refs import Refs
from casstore.refs.rows import RefQuery, row_of

if TYPE_CHECKING:
    from casstore.format.record import Record

NAMES = ["runs/a", "runs/ab", "models/a", "models/c/d", "tags/a", "tags/c/d"]
TARGETS = [bytes([number]) * 32 for number in (1, 2, 17)]
FACTS = [{}, {"status": "done"}, {"status": "failed", "n": 1}, {"blob": b"bytes", "status": "done"}]
QUERIES = [
    RefQuery(),
    RefQuery("runs/"),
    RefQuery("models/a"),
    RefQuery("tags/"),
    RefQuery(where=(("status", "done"),)),
    RefQuery("runs/", where=(("n", 1),)),
    RefQuery(target=TARGETS[0]),
    RefQuery("models/", base=TARGETS[1]),
]
CLIENTS = ["first", "second", "elsewhere", "forgetful"]

CLIENT = st.sampled_from(CLIENTS)
NAME = st.sampled_from(NAMES)
LIMIT = st.sampled_from([None, 1, 3])


def cut(path, chance):
    os.truncate(path, chance.randrange(os.path.getsize(path) + 1))


def garbage(path, chance):
    with open(path, "wb") as file:
        file.write(chance.randbytes(chance.choice((10, 5000, 50_000))))


def garbage_page(path, chance):
    """Overwrite one page, as a disk might."""
    pages = os.path.getsize(path) // 4096
    if pages:
        with open(path, "r+b") as file:
            file.seek(4096 * chance.randrange(pages))
            file.write(chance.randbytes(4096))


def remove(path, chance):
    os.unlink(path)


def remove_all(path, chance):
    shutil.rmtree(os.path.dirname(path))


def remove_side_files(path, chance):
    for name in (f"{path}-wal", f"{path}-shm"):
        with suppress(FileNotFoundError):
            os.unlink(name)


def replace_by_another(path, chance):
    """What was copied from another machine, or from a backup."""
    with sqlite3.connect(f"{path}.new") as connection:
        connection.execute("CREATE TABLE records (what TEXT)")
    connection.close()
    os.replace(f"{path}.new", path)


def by_sql(*statements):
    def damage(path, chance):
        connection = sqlite3.connect(path, isolation_level=None)
        with suppress(sqlite3.Error):  # there may be no such table yet
            for statement in statements:
                connection.execute(statement)
        connection.close()

    return damage


DAMAGE = {
    "cut": cut,
    "garbage": garbage,
    "garbage page": garbage_page,
    "remove": remove,
    "remove all": remove_all,
    "remove side files": remove_side_files,
    "another file": replace_by_another,
    "lose a row": by_sql("DELETE FROM folders WHERE prefix = (SELECT min(prefix) FROM folders)"),
    "lose all rows": by_sql("DELETE FROM folders"),
    "lose a record": by_sql("DELETE FROM records WHERE key = (SELECT min(key) FROM records)"),
    "lose records": by_sql("DELETE FROM records"),
    "lose everything": by_sql("DELETE FROM records", "DELETE FROM folders"),
    "wrong records": by_sql("UPDATE records SET data = x'00'"),
    "odd records": by_sql("UPDATE records SET data = 5"),
    "swapped records": by_sql("UPDATE records SET data = (SELECT data FROM records ORDER BY key LIMIT 1)"),
    "wrong rows": by_sql("UPDATE folders SET packed = CAST(replace(packed, x'01', x'02') AS BLOB)"),
    "cut rows": by_sql("UPDATE folders SET packed = substr(packed, 1, length(packed) / 2)"),
    "swapped rows": by_sql(
        "UPDATE folders SET packed = (SELECT packed FROM folders ORDER BY prefix LIMIT 1)"
    ),
    "swapped folders": by_sql(
        "UPDATE folders SET (head, packed, checksum) ="
        " (SELECT head, packed, checksum FROM folders ORDER BY prefix LIMIT 1)"
    ),
    "swapped heads": by_sql("UPDATE folders SET head = (SELECT head FROM folders ORDER BY prefix LIMIT 1)"),
}


def matches(query, row):
    """Say whether a query wants a row."""
    return (
        row.name.startswith(query.prefix)
        and query.target in (None, row.target)
        and query.base in (None, row.base)
        and all(row.metadata.get(field) == value for field, value in query.where)
    )


class CatalogueMachine(RuleBasedStateMachine):
    """Four clients of one store: two that share a catalogue, one with its own, one with none."""

    folder: str

    @initialize()
    def start(self):
        self.root = os.path.join(self.folder, uuid.uuid4().hex)
        self.backend = open_backend(f"{self.root}/store", create=True, durability="none")
        self.clients = {name: self._open(name) for name in CLIENTS}
        self.held: dict[str, Record] = {}
        self.clock = 0

    def _path(self, name):
        return {
            "first": f"{self.root}/shared/state.sqlite",
            "second": f"{self.root}/shared/state.sqlite",
        }.get(name, f"{self.root}/own/state.sqlite")

    def _open(self, name):
        machine = MachineState(None if name == "forgetful" else self._path(name))
        return Refs(self.backend, machine), machine

    def _heads(self, name):
        records = [record for record in self.held.values() if record.name == name]
        highest = max((record.seq for record in records), default=0)
        # A deletion loses against whatever was written at the same moment.
        return sorted(
            (item for item in records if item.seq == highest),
            key=lambda item: (item.target is not None, item.write_id),
        )

    def _values(self):
        heads = {name: self._heads(name) for name in NAMES}
        return {name: found[-1] for name, found in heads.items() if found and found[-1].target is not None}

    def _hold(self, record):
        self.held[record.key] = record_format.decode(self.backend.read(record.key), key=record.key)

    @rule(
        which=CLIENT,
        name=NAME,
        to=st.sampled_from([None, *TARGETS]),
        base=st.sampled_from([None, *TARGETS]),
        facts=st.sampled_from(FACTS),
    )
    def put(self, which, name, to, base, facts):
        refs, _ = self.clients[which]
        heads = self._heads(name)
        forked = len({record.target for record in heads} - {None}) > 1
        try:
            record = refs.draft(name, target=to, base=base, metadata=facts)
        except ConflictError:
            assert forked
            assert name.startswith("tags/")
            return
        assert record.seq == (heads[-1].seq + (record not in heads) if heads else 1)
        if record not in heads:
            self.clock += 1
            record = replace(record, time=self.clock // 2)
        refs.put(record)
        self._hold(record)

    @rule(name=NAME, to=st.sampled_from([None, *TARGETS]), exclusive=st.booleans())
    def two_writers_at_once(self, name, to, exclusive):
        """Another record with the highest number; where tags were once not exclusive, both kinds meet."""
        for newest in self._heads(name)[-1:]:
            other = replace(newest, write_id=os.urandom(16), target=to, exclusive=exclusive)
            if other.key not in self.held:
                self.backend.put(other.key, [record_format.encode(other)])
                self._hold(other)

    @rule(name=NAME, everything=st.booleans())
    def trim(self, name, everything):
        """As a collector does: what is superseded, and all that is left of what is deleted."""
        heads = self._heads(name)
        gone = everything and all(record.target is None for record in heads)
        for key, record in list(self.held.items()):
            if record.name == name and (gone or record not in heads):
                self.backend.delete(key)
                del self.held[key]

    @rule(name=NAME)
    def lose(self, name):
        """As when a store is put back from an older copy: numbers of tags recur with other contents."""
        for record in self._heads(name):
            self.backend.delete(record.key)
            del self.held[record.key]

    @rule(which=CLIENT)
    def reopen(self, which):
        self.clients[which][1].close()
        self.clients[which] = self._open(which)

    @rule(which=CLIENT, how=st.sampled_from(sorted(DAMAGE)), seed=st.integers(0, 2**32))
    def damage(self, which, how, seed):
        if os.path.exists(self._path(which)):
            DAMAGE[how](self._path(which), random.Random(seed))

    @rule(which=CLIENT, query=st.sampled_from(QUERIES), limit=LIMIT, newest=st.booleans())
    def find(self, which, query, limit, newest):
        wanted = [row for record in self._values().values() if matches(query, row := row_of(record))]
        wanted.sort(key=lambda row: row.order, reverse=newest)
        found = self.clients[which][0].find(query, limit=limit, newest_first=newest)
        assert found == wanted[:limit]

    @rule(which=CLIENT, prefix=st.sampled_from(["", "runs/", "tags/", "models/a", "r"]))
    def values(self, which, prefix):
        wanted = {name: record for name, record in self._values().items() if name.startswith(prefix)}
        found = self.clients[which][0].values(prefix)
        assert found == wanted
        assert list(found) == sorted(found)

    @rule(which=CLIENT, limit=LIMIT, newest=st.booleans(), digits=st.integers(1, 64))
    def look_at_everything(self, which, limit, newest, digits):
        self.find(which, RefQuery(), limit, newest)
        self.values(which, "")
        refs = self.clients[which][0]
        for name in NAMES:
            assert list(refs.heads(name).records) == self._heads(name)
            assert refs.value(name) == self._values().get(name)
        models = [item for item in self._values().values() if not item.name.startswith("runs/")]
        for model in TARGETS:
            prefix = model.hex()[:digits]
            targets = sorted({item.target for item in models if item.target.hex().startswith(prefix)})
            found, record = refs.naming(prefix)
            assert found == targets
            naming = [item for item in models if item.target in targets]
            assert record == (
                max(naming, key=lambda item: (item.time, item.name)) if len(targets) == 1 else None
            )

    @invariant()
    def nothing_else_is_in_the_store(self):
        if hasattr(self, "held"):
            assert list(self.backend.list_keys("refs/")) == sorted(self.held)

    def teardown(self):
        for _, machine in getattr(self, "clients", {}).values():
            machine.close()


def test_refs_are_a_dict_of_records(tmp_path):
    class Machine(CatalogueMachine):
        folder = str(tmp_path)

    # Cheap steps, and rare faults: more histories than those of whole stores.
    run_state_machine_as_test(
        Machine, settings=settings(max_examples=2 * STATEFUL, stateful_step_count=2 * STEPS)
    )


# ---- several processes, and someone who breaks the file all the while

WRITER = textwrap.dedent(
    """
    import os, random, sys
    from casstore.backend import open_backend
    from casstore.machine.state import MachineState
    from casstore.refs.rows import RefQuery
    from casstore.refs.refs import Refs

    store, state, who, seed = sys.argv[1:]
    chance = random.Random(int(seed))
    refs = Refs(open_backend(store, durability="none"), MachineState(state))
    mine = {}
    for turn in range(25):
        name = f"runs/{who}-{chance.randrange(9)}"
        target = None if mine.get(name) and chance.random() < 0.3 else os.urandom(32)
        refs.put(refs.draft(name, target=target, metadata={"who": who}))
        mine[name] = target
        wanted = {name: target for name, target in mine.items() if target}
        query = RefQuery("runs/", where=(("who", who),))
        found = {row.name: row.target for row in refs.find(query)}
        assert found == wanted, (found, wanted)
        if turn % 10 == 0:
            found = refs.values(f"runs/{who}-")
            assert {name: record.target for name, record in found.items()} == wanted
    """
)


@pytest.mark.parametrize(
    "breaking",
    [None, "cut", "garbage", "garbage page", "lose a row", "remove", "remove all", "remove side files"],
)
def test_processes_that_share_a_catalogue(tmp_path, breaking):
    """Each always finds what it wrote, and all find the same in the end."""
    backend = open_backend(f"{tmp_path}/store", create=True, durability="none")
    path = f"{tmp_path}/state/state.sqlite"
    seed = 0 if breaking is None else sorted(DAMAGE).index(breaking)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, f"{tmp_path}/store", path, f"w{number}", str(seed + number)],
            stderr=subprocess.PIPE,
        )
        for number in range(3)
    ]
    chance = random.Random(seed)
    while any(writer.poll() is None for writer in writers):
        time.sleep(0.02)
        if breaking is not None:
            with suppress(OSError, sqlite3.Error):  # the file comes and goes
                DAMAGE[breaking](path, chance)
    for writer in writers:
        _, errors = writer.communicate()
        assert writer.returncode == 0, errors.decode()
        assert breaking is not None or errors == b"", "nobody breaks the file but its users"
    machine = MachineState(path)
    found = Refs(backend, machine).find(RefQuery())
    machine.close()
    assert found == Refs(backend, MachineState(None)).find(RefQuery())
    assert found
