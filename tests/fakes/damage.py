"""Stores to damage, on the disk and in memory, and what readers and `check` say about them."""

from __future__ import annotations

import random
import uuid
from contextlib import contextmanager, suppress

import numpy as np
from fakes.model_files import safetensors_bytes
from fakes.predicting import predicting
from fakes.stores import (
    assert_clean,
    model_of,
    noise,
    write_model,
)

from casstore import IntegrityError, Store
from casstore.backend import MemoryBackend, memory
from casstore.format import marks, names
from casstore.machine.state import MachineState
from casstore.ops.check import check
from casstore.store.model_store import ModelStore

FOLDERS = ("packs", "index", "refs", "gc")


def weights(seed, shape, dtype=np.float32):
    return np.random.default_rng(seed).normal(0, 0.02, shape).astype(dtype)


TENSORS = {"w": weights(1, (6, 20)), "b": weights(2, (9,), np.float16)}
SMALL = {
    "models/first": model_of(
        planes__safetensors=safetensors_bytes(TENSORS),
        text__txt=b"the same words again, " * 40,
        raw=noise(1, 60),
    ),
    "models/second": model_of(raw=noise(1, 60), other=noise(2, 40)),
}
SMALL_FILES = sum(len(model.files) for model in SMALL.values())


def build(root, models, folder, *, more=True):
    with Store(root, create=True, durability="none") as store:
        for number, (ref, model) in enumerate(models.items()):
            path = write_model(model, folder / f"m{number}")
            with predicting():
                store.add(path, ref=ref, metadata={"number": number})
        if more:
            store.tag("kept", next(iter(models)))
            store.rm(store.add(folder / "m0", ref="models/deleted").ref)
        doomed = marks.Tombstone((bytes(32),), 1)
        store.backend.put(f"{marks.TOMBSTONE_PREFIX}{uuid.UUID(int=1)}", [marks.encode_tombstone(doomed)])
        assert_clean(store)
        return {item.encoding for item in store.stats().frames}


def files_of(root, *folders):
    """The keys of a store's files; the format file is one unless folders are given."""
    found = [
        str(path.relative_to(root))
        for folder in folders or FOLDERS
        for path in sorted((root / folder).rglob("*"))
        if path.is_file() and path.name not in (".lock", "lockless")
    ]
    return found if folders else ["format", *found]


def in_memory(root):
    """A store's files as a dict, and a store on it: changing the dict is damage that costs nothing."""
    name = f"copy-{random.getrandbits(64):x}"
    backend = MemoryBackend(name)
    memory._stores.pop(name)  # Nobody opens it by its name, and a long run makes one for each flip.
    for key in files_of(root):
        backend.put(key, [(root / key).read_bytes()])
    return backend


def opened(backend):
    """A store that remembers nothing."""
    identity = marks.decode_format(backend.read(marks.FORMAT_KEY))
    return ModelStore(backend, store_id=identity.store_id, machine=MachineState(None))


@contextmanager
def damaged(backend, key, data):
    before = backend._objects[key]
    backend._objects[key] = (bytes(data), before[1])
    try:
        yield
    finally:
        backend._objects[key] = before


def flipped(data, at, mask):
    return b"%b%c%b" % (data[:at], data[at] ^ mask, data[at + 1 :])


def masks(count, seed):
    chosen = random.Random(seed)
    return [chosen.choice((1, 2, 4, 8, 16, 32, 64, 128, 255, chosen.randrange(1, 256))) for _ in range(count)]


def read_all(store, models):
    """Read every file and tensor; return how many came back, after checking that they are right."""
    right = 0
    for ref, model in models.items():
        for path, (expected, _) in model.files.items():
            with suppress(IntegrityError), store.open_file(ref, path) as file:
                assert file.read() == expected, (ref, path)
                right += 1
    return right


def read_tensors(store, expected):
    right = 0
    for (ref, path, name), array in expected.items():
        with suppress(IntegrityError):
            assert store.read_tensor(ref, name, file=path).tobytes() == array.tobytes(), (ref, path, name)
            right += 1
    return right


SMALL_TENSORS = {("models/first", "planes/safetensors", name): array for name, array in TENSORS.items()}


def replace(path, data):
    path.unlink()
    path.write_bytes(data)


def problems_of(root):
    with Store(root) as store:
        return {problem.key: problem.message for problem in check(store, read_data=True).problems}


def foreign_in(root):
    with Store(root) as store:
        return {found.key: found.message for found in check(store).foreign}


def record_of(root, ref):
    [key] = [key for key in files_of(root, "refs") if key.startswith(names.directory(ref))]
    return key
