"""Damage anywhere in a store: `check` reports every flipped byte, and no reader gets a wrong one.

The small store is flipped at every byte, the larger one at some of them (fakes/counts.py: FLIPS).
"""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fakes.counts import FLIPS, SEED
from fakes.damage import (
    SMALL,
    SMALL_FILES,
    SMALL_TENSORS,
    build,
    damaged,
    files_of,
    flipped,
    in_memory,
    masks,
    opened,
    read_all,
    read_tensors,
    replace,
    weights,
)
from fakes.model_files import gguf_bytes, safetensors_bytes
from fakes.predicting import relative
from fakes.stores import (
    assert_clean,
    model_of,
    noise,
    read_folder,
    small_packs,
    write_model,
)

from casstore import IntegrityError, Store
from casstore.backend import LocalBackend
from casstore.errors import DigestMismatch
from casstore.format import pack
from casstore.objects.footers import read_footer
from casstore.objects.keys import pack_id_of
from casstore.ops.check import check


def large_models():
    tensors = {f"layer.{n}": weights(n, (300, 500)) for n in range(3)}
    tensors["half"] = weights(9, (400, 600), np.float16)
    quantised = ("Q8_0", (512, 256), np.random.default_rng(0).bytes(512 * 256 // 32 * 34))
    return {
        "models/base": model_of(model__safetensors=safetensors_bytes(tensors), config=b'{"a": 1}\n' * 2000),
        "models/tuned": model_of(
            model__safetensors=safetensors_bytes({**tensors, "half": weights(10, (400, 600), np.float16)}),
            model__gguf=gguf_bytes({"q": quantised}),
        ),
        "models/noise": model_of(noise=noise(5, 700_000)),
        "models/near": model_of(near=relative(0)),
        "models/nearer": model_of(near=relative(1)),
    }


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """A store of one model, in which every kind of file and every encoding is."""
    top = tmp_path_factory.mktemp("smallest")
    models = {"models/first": SMALL["models/first"]}
    assert build(top / "store", models, top, more=False) == {"raw", "zstd", "planes"}
    return top / "store"


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    top = tmp_path_factory.mktemp("large")
    with pytest.MonkeyPatch.context() as patch:
        small_packs(patch, 900_000)
        assert build(top / "store", large_models(), top) == {"raw", "zstd", "planes", "delta"}
    assert len(files_of(top / "store", "packs")) >= 4
    return top / "store"


# ---- one byte flipped


@pytest.mark.parametrize("part", ["format", "packs", "index", "refs", "gc"])
def test_check_reports_every_flipped_byte_of_a_small_store(smallest, part):
    """Every byte of every file, one at a time."""
    backend = in_memory(smallest)
    store = opened(backend)
    tried, missed = 0, []
    for key in files_of(smallest, part) if part != "format" else ["format"]:
        data = backend.read(key)
        for at, mask in enumerate(masks(len(data), seed=key[-8:])):
            with damaged(backend, key, flipped(data, at, mask)):
                report = check(store, read_data=True)
            tried += 1
            if key not in {problem.key for problem in report.problems}:
                missed.append((key, at, mask))
    assert tried >= 100
    assert not missed
    assert_clean(opened(backend))


def test_readers_of_a_small_store_get_right_bytes_or_an_error(small):
    """A fresh store for every flip, so that nothing is remembered: every sixteenth byte of every file."""
    backend = in_memory(small)
    files = SMALL_FILES
    assert read_all(opened(backend), SMALL) == files
    assert read_tensors(opened(backend), SMALL_TENSORS) == len(SMALL_TENSORS)
    harmless = 0
    harmful = 0
    for key in files_of(small):
        data = backend.read(key)
        chosen = masks(len(data), seed=key)
        for at in range(len(key) % 16, len(data), 16):
            with damaged(backend, key, flipped(data, at, chosen[at])):
                try:
                    store = opened(backend)
                except IntegrityError:
                    harmful += 1
                    continue
                whole = read_all(store, SMALL) == files
                whole &= read_tensors(store, SMALL_TENSORS) == len(SMALL_TENSORS)
            harmless += whole
            harmful += not whole
    assert harmful > harmless / 4
    assert harmful + harmless > 250


def flips_of(root, count):
    """Positions to flip: the ends of every file and random ones, more in larger files."""
    chosen = random.Random(20 + 1000 * SEED)
    sizes = {key: (root / key).stat().st_size for key in files_of(root)}
    edges = [
        (key, at) for key, size in sizes.items() for at in (0, 31, 32, 40, size - 1, size - 70) if at < size
    ]
    flips = chosen.sample(edges, min(len(edges), count // 2))
    while len(flips) < count:
        key = chosen.choices(list(sizes), weights=[size + 20_000 for size in sizes.values()])[0]
        flips.append((key, chosen.randrange(sizes[key])))
    return list(zip(flips, masks(count, seed=21 + 1000 * SEED), strict=True))


def test_flips_in_a_larger_store(large, tmp_path, monkeypatch):
    """On the disk, through everything that reads: check, checkout, open_file and read_tensor."""
    models = large_models()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    missed, harmful = [], 0
    for (key, at), mask in flips_of(large, FLIPS):
        path = large / key
        before = path.read_bytes()
        replace(path, flipped(before, at, mask))
        try:
            if not finds_damage(large, key):
                missed.append((key, at, mask))
            harmful += not reads_right_or_fails(large, models, tmp_path / "out")
        finally:
            replace(path, before)
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    assert not missed
    assert harmful > FLIPS // 10
    with Store(large) as store:
        assert_clean(store)


def test_a_checkout_tells_which_pack_is_damaged_or_reads_another(tmp_path):
    """A bit of noise decodes wherever it is flipped: nothing but a hash can tell."""
    model = model_of(first=noise(6, 3_000_000), second=noise(5, 700_000))
    folder = write_model(model, tmp_path / "model")
    for name in ("store", "twin"):
        with Store(tmp_path / name, create=True, durability="none") as store:
            store.add(folder, ref="models/noise")
    root = tmp_path / "store"
    ours, theirs = (
        max(files_of(tmp_path / name, "packs"), key=lambda key: (tmp_path / name / key).stat().st_size)
        for name in ("store", "twin")
    )
    intact = (root / ours).read_bytes()
    replace(root / ours, flipped(intact, len(intact) // 2, 16))
    with Store(root) as store, pytest.raises(DigestMismatch, match=ours):
        store.get("models/noise", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    for key in files_of(tmp_path / "twin", "packs", "index"):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "twin" / key, root / key)
    for key in (ours, theirs):
        replace(root / ours, intact)
        data = (root / key).read_bytes()
        replace(root / key, flipped(data, len(data) // 2, 16))
        with Store(root) as store:
            store.get("models/noise", tmp_path / "out")
        assert read_folder(tmp_path / "out") == model
        shutil.rmtree(tmp_path / "out")


def finds_damage(root, key):
    if key == "format":
        with pytest.raises(IntegrityError, match="format"):
            Store(root)
        return True
    with Store(root) as store:
        return key in {problem.key for problem in check(store, read_data=True).problems}


def reads_right_or_fails(root, models, out):
    """Check out every model; say whether all came. A wrong byte fails the test."""
    try:
        store = Store(root)
    except IntegrityError:
        return False
    with store:
        came = [checks_out(store, ref, model, out) for ref, model in models.items()]
    return all(came)


def checks_out(store, ref, model, out):
    try:
        store.get(ref, out)
    except IntegrityError as caught:
        error = caught
    else:
        assert read_folder(out) == model
        shutil.rmtree(out)
        return True
    assert re.search(r"packs/|index/|refs/|object", str(error))
    assert not out.exists()
    return False


# ---- files cut short


def cuts_of(size):
    return sorted({0, 1, size // 3, size // 2, size - 65, size - 64, size - 32, size - 1} & set(range(size)))


def test_every_kind_of_file_cut_short(small):
    backend = in_memory(small)
    files = SMALL_FILES
    for key in files_of(small):
        data = backend.read(key)
        for size in sorted({*cuts_of(len(data)), *range(0, len(data), 37)}):
            with damaged(backend, key, data[:size]):
                try:
                    store = opened(backend)
                except IntegrityError:
                    continue
                assert read_all(store, SMALL) <= files
                problems = check(store, read_data=True).problems
                assert key in {problem.key for problem in problems}, (key, size)


def test_files_with_bytes_added(small):
    backend = in_memory(small)
    for key in files_of(small):
        with damaged(backend, key, backend.read(key) + b"\0"):
            if key == "format":
                with pytest.raises(IntegrityError):
                    opened(backend)
                continue
            store = opened(backend)
            read_all(store, SMALL)
            assert key in {problem.key for problem in check(store, read_data=True).problems}


def test_a_segment_cut_short_on_the_disk_stops_nobody(copied, caplog):
    for key in files_of(copied, "index"):
        path = copied / key
        path.chmod(0o600)
        before = path.read_bytes()
        for size in (0, 10, 63, 64, len(before) - 1):
            path.write_bytes(before[:size])
            caplog.clear()
            with Store(copied) as store:
                assert read_all(store, SMALL) == SMALL_FILES
                assert key in {problem.key for problem in check(store).problems}
            [warning] = caplog.records
            assert key in warning.getMessage()
        path.write_bytes(before)


# ---- what the files themselves promise


def test_every_frame_of_the_larger_store_lies_where_scan_and_footer_say(large):
    backend = LocalBackend(large)
    for key in files_of(large, "packs"):
        footer = read_footer(backend, pack_id_of(key))
        scanned = [offset for offset, _ in pack.scan_frames(Path(large / key).read_bytes(), key=key)]
        assert scanned == footer.rows["offset"].tolist()
