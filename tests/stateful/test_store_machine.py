"""Store against a dict: whatever is done in whatever order, by two processes in turn, the two agree."""

from __future__ import annotations

import itertools
import os
import shutil
import uuid
from dataclasses import dataclass, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from fakes.counts import STATEFUL, STEPS
from fakes.fresh_files import trust_fresh_files
from fakes.model_files import safetensors_bytes
from fakes.stores import Content, assert_clean, noise, read_folder, write_model
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from casstore.api.store import Store
from casstore.backend import memory
from casstore.digest import digest
from casstore.errors import ConfigError, RefNotFound
from casstore.objects.index.merging import MAX_SEGMENTS
from casstore.objects.keys import INDEX_PREFIX

NAMES = ("models/a", "models/b", "models/B", "models/deep/name", "models/ünï=code", "models/r", "tags/e")
TAGS = ("tags/stable", "tags/v1")
PATHS = ("a", "b.bin", "dir/c", "dir/d e", "dir/deeper/f", "é")
WEIGHTS = "weights.safetensors"
EMPTY = ("void", "dir/void", "x/y")


@dataclass(frozen=True)
class Held:
    """What a ref must mean."""

    content: Content
    model_id: str
    base: str | None = None
    metadata: tuple = ()


@dataclass(frozen=True)
class Bytes:
    """Recipe of a file's bytes, short enough for a person to read in a failing example."""

    kind: str
    seed: int
    size: int

    def make(self):
        if self.kind == "tensors":
            tensors = {}
            for at in range(1 + self.seed):
                size = 70_000 if at == 1 else 100 * (at + 1)
                tensors[f"t{at}"] = np.frombuffer(noise(at, size), np.uint8).view(np.uint16)
            return safetensors_bytes(tensors)
        if self.kind == "zeros":
            return bytes(self.size)
        return (b"shift" if self.kind == "shifted" else b"") + noise(self.seed, self.size)


# Few seeds, so that the same bytes turn up under many names.
BYTES = st.builds(
    Bytes,
    st.sampled_from(["noise", "noise", "shifted", "zeros"]),
    st.integers(0, 3),
    st.sampled_from([0, 1, 100, 5_000, 70_000, 300_000]),
)
TENSORS = st.builds(Bytes, st.just("tensors"), st.integers(0, 3), st.just(0))
FILES = st.builds(
    lambda plain, tensors: plain | tensors,
    st.dictionaries(st.sampled_from(PATHS), st.tuples(BYTES, st.booleans()), max_size=3),
    st.dictionaries(st.just(WEIGHTS), st.tuples(TENSORS, st.booleans()), max_size=1),
)
EMPTIES = st.frozensets(st.sampled_from(EMPTY), max_size=2)
METADATA = st.dictionaries(
    st.text(max_size=5),
    st.one_of(st.integers(-5, 5), st.text(max_size=5), st.none(), st.booleans()),
    max_size=2,
)
WHICH = st.integers(0, 1)


def pick(data, items, label):
    """Draw one of some items by a number whose range is always the same.

    Which refs a collection leaves may depend on the sizes of packs, and on times; Hypothesis takes a choice among other things
    than before, for the same history, for an error of the test.
    """
    return items[data.draw(st.integers(0, 5039), label=label) % len(items)]


class StoreMachine(RuleBasedStateMachine):
    """`held` is the truth. Two Store objects on the same place are used in turn; each has an index of its own."""

    folder = ""
    kind = ""
    trusting = False

    def __init__(self):
        super().__init__()
        self.held = {}
        self.folders = {}
        self.known_contents = {}
        self.numbers = itertools.count()
        self.index_whole = True
        self.checked = []
        name = uuid.uuid4().hex
        self.place = f"memory://{name}" if self.kind == "memory" else os.path.join(self.folder, name)
        self.work = os.path.join(self.folder, f"{name}-work")
        os.makedirs(self.work)

    @initialize()
    def open(self):
        self.stores = [self._open(create=True), self._open()]

    def _open(self, *, create=False):
        store = Store(self.place, create=create, durability="none")
        if self.trusting:
            trust_fresh_files(store, min_age=-(1 << 62))
        return store

    def _files(self):
        """Return key and size of every file of the store; what has a name keeps its bytes."""
        if not hasattr(self, "stores"):
            return []
        return sorted((entry.key, entry.size) for entry in self.stores[0].backend.list(""))

    def _new_folder(self):
        return os.path.join(self.work, str(next(self.numbers)))

    def teardown(self):
        try:
            if hasattr(self, "stores"):
                assert_clean(self._open())
                for name in self.held:
                    self._check_out(self.stores[0], name)
                for store in self.stores:
                    store.close()
        finally:
            memory._stores.pop(self.place.removeprefix("memory://"), None)
            shutil.rmtree(self.place, ignore_errors=True)
            shutil.rmtree(self.work, ignore_errors=True)

    # ---- adding

    def _add(self, which, folder, content, ref, *, base=None, metadata=None, stat_cache=True):
        added = self.stores[which].add(folder, ref=ref, base=base, metadata=metadata, stat_cache=stat_cache)
        name = ref or f"models/{os.path.basename(folder)}"
        assert added.ref == name
        assert (added.files, added.bytes_total) == (len(content.files), content.size)
        plain = sorted((path, data) for path, (data, _) in content.files.items())
        key = digest(repr((plain, sorted(content.empty))).encode())
        assert self.known_contents.setdefault(key, added.model_id) == added.model_id, "one content, one id"
        assert list(self.known_contents.values()).count(added.model_id) == 1, "one id, one content"
        base_id = self.held[base].model_id if base else None
        self._hold(name, Held(content, added.model_id, base_id, tuple(sorted((metadata or {}).items()))))
        self.folders[name] = folder
        return added

    def _hold(self, name, held):
        """Note what a ref must mean; an equal value stands as it is, with the executable bits that it has."""
        there = self.held.get(name)
        if there is None or replace(there, content=held.content) != held:
            self.held[name] = held

    @rule(
        which=WHICH,
        tree=st.tuples(FILES, EMPTIES),
        ref=st.one_of(st.sampled_from(NAMES), st.none()),
        data=st.data(),
        metadata=st.one_of(st.none(), METADATA),
    )
    def add(self, which, tree, ref, data, metadata):
        files, empty = tree
        base = pick(data, [None, *sorted(self.held)], "base")
        made = {path: (recipe.make(), executable) for path, (recipe, executable) in files.items()}
        content = with_parents(Content(made, empty))
        folder = write_model(content, self._new_folder())
        self._add(which, folder, content, ref, base=base, metadata=metadata)

    @precondition(lambda self: self.folders)
    @rule(which=WHICH, data=st.data(), stat_cache=st.booleans())
    def add_again(self, which, data, stat_cache):
        """Nothing new, not even a record, unless the ref moved on meanwhile."""
        name = pick(data, sorted(self.folders), "ref")
        folder, content = self.folders[name], read_folder(self.folders[name])
        before = self.stores[which].refs()
        held = self.held.get(name)
        added = self._add(which, folder, content, name, stat_cache=stat_cache)
        same = held is not None and held.content == content
        if same and self.index_whole:
            assert (added.bytes_new, added.chunks_new, added.bytes_stored) == (0, 0, 0)
            if (held.base, held.metadata) == (None, ()):
                assert self.stores[which].refs() == before

    @precondition(lambda self: any(read_folder(folder).files for folder in self.folders.values()))
    @rule(which=WHICH, data=st.data())
    def add_changed(self, which, data):
        """Change one file of an added folder in place, and add the folder to the same ref."""
        names = [name for name, folder in sorted(self.folders.items()) if read_folder(folder).files]
        name = pick(data, names, "ref")
        folder = self.folders[name]
        content = read_folder(folder)
        path = pick(data, sorted(content.files), "file")
        old, executable = content.files[path]
        how = data.draw(st.sampled_from(["append", "insert", "cut", "mode", "remove", "flip"]), label="how")
        at = data.draw(st.integers(0, len(old)), label="at")
        new = {
            "append": old + b"tail",
            "insert": old[:at] + b"!" + old[at:],
            "cut": old[:at],
            "flip": old[:at] + bytes([old[at] ^ 1]) + old[at + 1 :] if at < len(old) else old,
        }.get(how, old)
        files = dict(content.files)
        if how == "remove":
            del files[path]
        else:
            files[path] = (new, executable != (how == "mode"))
        shutil.rmtree(folder)
        changed = with_parents(replace(content, files=files))
        write_model(changed, folder)
        self._add(which, folder, changed, name)

    @rule(which=WHICH, recipe=BYTES)
    def add_one_file(self, which, recipe):
        data = recipe.make()
        folder = self._new_folder()
        os.makedirs(folder)
        path = os.path.join(folder, "single")
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
        content = Content({"single": (data, False)})
        self._add(which, path, content, "models/single")
        self.folders.pop("models/single")

    @rule(which=WHICH, start=st.integers(0, 20))
    def add_many_small_ones(self, which, start):
        """Enough segments for a merge, and more."""
        for number in range(start, start + MAX_SEGMENTS + 1):
            content = Content({"n": (b"%d" % number, False)})
            name = f"models/many/{number}"
            self._add(which, write_model(content, self._new_folder()), content, name)
            self.folders.pop(name)

    # ---- refs

    def _some_ref(self, data):
        return pick(data, sorted(self.held), "ref")

    @precondition(lambda self: self.held)
    @rule(which=WHICH, tag=st.sampled_from(TAGS), data=st.data())
    def tag(self, which, tag, data):
        name = self._some_ref(data)
        stored = self.stores[which].stats().bytes_packs
        assert self.stores[which].tag(tag.removeprefix("tags/"), name) == tag
        assert self.stores[which].stats().bytes_packs == stored
        self._hold(tag, replace(self.held[name], metadata=()))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, data=st.data())
    def delete_ref(self, which, data):
        name = self._some_ref(data)
        self.stores[which].rm(name)
        del self.held[name]
        with pytest.raises(RefNotFound):
            self.stores[which].model(name)

    @rule(which=WHICH, name=st.sampled_from(NAMES + TAGS))
    def delete_what_is_not_there(self, which, name):
        if name not in self.held:
            with pytest.raises(RefNotFound):
                self.stores[which].rm(name)

    @rule(which=WHICH, prefix=st.sampled_from(["", "models/", "models/m", "tags/", "runs/", "nothing", "t"]))
    def list_refs(self, which, prefix):
        listed = self.stores[which].refs(prefix)
        assert list(listed) == sorted(name for name in self.held if name.startswith(prefix))
        for name, record in listed.items():
            held = self.held[name]
            assert record.target.hex() == held.model_id
            assert (record.base.hex() if record.base else None) == held.base
            assert tuple(sorted(record.metadata.items())) == held.metadata

    @precondition(lambda self: self.held)
    @rule(which=WHICH, data=st.data(), digits=st.integers(4, 64))
    def resolve_an_id(self, which, data, digits):
        wanted = self.held[self._some_ref(data)].model_id
        ids = {held.model_id for held in self.held.values() if held.model_id.startswith(wanted[:digits])}
        if len(ids) == 1:
            assert self.stores[which].resolve(wanted[:digits]).model_id == wanted
        else:
            with pytest.raises(RefNotFound, match="ambiguous"):
                self.stores[which].resolve(wanted[:digits])

    # ---- reading

    def _check_out(self, store, name):
        folder = self._new_folder()
        store.get(name, folder)
        assert_same(read_folder(folder), self.held[name].content)
        return folder

    @precondition(lambda self: self.held)
    @rule(which=WHICH, data=st.data())
    def checkout(self, which, data):
        name = self._some_ref(data)
        folder = self._check_out(self.stores[which], name)
        if os.listdir(folder):
            with pytest.raises(ConfigError, match="not empty"):
                self.stores[which].get(name, folder)
            self.stores[which].get(name, folder, force=True)
            assert_same(read_folder(folder), self.held[name].content)

    @precondition(lambda self: any(held.content.files for held in self.held.values()))
    @rule(
        which=WHICH,
        data=st.data(),
        moves=st.lists(
            st.tuples(st.integers(0, 2), st.integers(-10, 310_000), st.integers(-1, 200_000)), max_size=6
        ),
    )
    def read_a_file(self, which, data, moves):
        name = pick(data, [n for n, h in sorted(self.held.items()) if h.content.files], "ref")
        path = pick(data, sorted(self.held[name].content.files), "file")
        place = os.path.join(write_model(self.held[name].content, self._new_folder()), path)
        with self.stores[which].open_file(name, path) as file, open(place, "rb") as truth:
            for whence, offset, length in moves:
                target = offset if whence == 0 else offset // 2 - 50_000
                if whence == 0 and target < 0:
                    continue
                assert seek(file, target, whence) == seek(truth, target, whence)
                assert file.tell() == truth.tell()
                same = file.read(length) == truth.read(length)
                assert same, (whence, offset, length)
            file.seek(0)
            same = file.read() == self.held[name].content.files[path][0]
            assert same

    @precondition(lambda self: any(WEIGHTS in held.content.files for held in self.held.values()))
    @rule(which=WHICH, data=st.data())
    def read_tensors(self, which, data):
        names = [name for name, held in sorted(self.held.items()) if WEIGHTS in held.content.files]
        name = pick(data, names, "ref")
        whole = self.held[name].content.files[WEIGHTS][0]
        layout = self.stores[which].model(name).layout(WEIGHTS)
        for span in layout.spans:
            array = self.stores[which].read_tensor(name, span.name, file=WEIGHTS)
            same = array.tobytes() == whole[span.begin : span.end]
            assert same
            assert array.shape == span.shape

    # ---- what happens to a store

    @rule(which=WHICH)
    def reopen(self, which):
        self.stores[which].close()
        self.stores[which] = self._open()

    @rule(which=WHICH, number=st.integers(0, 255))
    def lose_an_index_segment(self, which, number):
        """The packs' own footers must serve."""
        backend = self.stores[which].backend
        keys = sorted(entry.key for entry in backend.list(INDEX_PREFIX))
        # How many there are depends on threads: no draw may depend on it.
        if keys:
            backend.delete(keys[number % len(keys)])
            self.index_whole = False

    @rule(which=WHICH)
    def forget_the_machine(self, which):
        """What is in the user's cache directory is only ever a copy."""
        for store in self.stores:
            store.close()
        shutil.rmtree(os.environ["XDG_CACHE_HOME"], ignore_errors=True)
        self.stores = [self._open(), self._open()]

    @rule(which=WHICH)
    def stats(self, which):
        stats = self.stores[which].stats()
        models = {held.model_id: held.content.size for held in self.held.values()}
        assert (stats.refs, stats.models, stats.bytes_logical) == (
            len(self.held),
            len(models),
            sum(models.values()),
        )

    @invariant()
    def is_sound(self):
        """Check the store whenever its files are others than at the last check."""
        files = self._files()
        if files != self.checked:
            self.checked = files
            report = assert_clean(self.stores[0], read_data=False)
            assert report.models == len({held.model_id for held in self.held.values()})


def assert_same(found, wanted):
    """Compare contents; name what differs without printing megabytes."""
    assert (sorted(found.files), found.empty) == (sorted(wanted.files), wanted.empty)
    wrong = [path for path, value in wanted.files.items() if found.files[path] != value]
    assert not wrong


def with_parents(content):
    """Drop what cannot be on a disk: an empty directory that holds something, or a file where a folder is."""
    filled = {
        "/".join(parts[:at])
        for parts in (path.split("/") for path in [*content.files, *content.empty])
        for at in range(1, len(parts))
    }
    return replace(content, empty=frozenset(content.empty - filled))


def seek(file, target, whence):
    """Seek; both files must refuse the same."""
    try:
        return file.seek(target, whence)
    except (OSError, ValueError):
        return "refused"


@pytest.mark.parametrize("kind", ["memory", "local"])
@pytest.mark.parametrize("racy", [True, False], ids=["cautious", "trusting"])
def test_the_store_is_a_dict(kind, racy, tmp_path, monkeypatch):
    """`trusting` lets the stat cache answer for files that were touched a moment ago."""

    class Machine(StoreMachine):
        pass

    Machine.kind, Machine.folder, Machine.trusting = kind, str(tmp_path), not racy
    run_state_machine_as_test(Machine, settings=settings(max_examples=STATEFUL, stateful_step_count=STEPS))
