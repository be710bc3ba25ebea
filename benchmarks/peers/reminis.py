"""reminis, which keeps models in SQLite: bases outright, derived ones as compressed differences from them."""

from __future__ import annotations

import importlib.metadata
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.peers.base import PeerFailed, Receipt, import_peer, model_files, tree_bytes
from benchmarks.peers.file_objects import FileObjects, load_hash
from benchmarks.peers.zstd_files import ZstdCodec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from benchmarks.peers.base import Model

_REGISTRY = "registry.db"
_SCRATCH = "scratch"
_LARGEST = 999_999_000
"""Bytes of the largest tensor that SQLite takes as one value."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A safetensors file of a model: all before its data, and where in the file each tensor lies."""

    head: bytes
    spans: dict[str, tuple[int, int]]


class Reminis:
    """One `Registry.add_base` or `add_derived` per model; `Registry.tensors` to rebuild it.

    A registry keeps tensors, not files. What is needed to get the same files back, the headers of safetensors
    files, is kept beside it, and so is every file that reminis does not take: tokenizers, torch zips, ONNX.
    Its own `export` would write other headers, after two more copies of the model in temporary databases;
    rebuilt weights are checked here against the same hash that it checks.
    """

    name = "reminis"
    setting = (
        "safetensors in one registry, derived models as lossless deltas against their base, SHA-256 checked; "
        "SQLite syncs it when it is closed; safetensors headers and all other files (torch zip, ONNX, "
        "tokenizer), which it does not take, zstd -3 beside it, one copy of equal files, fsynced"
    )

    def __init__(self) -> None:
        install = "pip install '.[bench]'"
        self._registry: Any = import_peer("reminis.registry", install=install)
        self._safetensors: Any = import_peer("reminis.safetensors_io", install=install)
        self._dtypes: Any = import_peer("reminis.dtypes", install=install)
        # Loaded here for its memory: at the top of the file it would be counted for every peer.
        self._hashlib: Any = import_peer("hashlib", install="it is part of Python")
        self._codec = ZstdCodec()
        load_hash()  # Now, outside what is timed.

    def version(self) -> str:
        """The version of the package."""
        return importlib.metadata.version("reminis")

    def prepare(self, store: Path) -> None:
        """An empty registry, and empty folders beside it."""
        FileObjects(store, self._codec).create()
        (store / _SCRATCH).mkdir()
        self._registry.Registry(store / _REGISTRY).close()

    def add(self, store: Path, models: Sequence[Model], *, reread: bool) -> Receipt:
        """One registry for all. A model that is there already is added as derived from itself."""
        del reread  # There is no stat cache: files are always read.
        tempfile.tempdir = str(store / _SCRATCH)  # Where it makes databases to compare: the disk measured.
        objects = FileObjects(store, self._codec)
        receipt: Receipt = {}
        with self._registry.Registry(store / _REGISTRY, create=False) as registry:
            for model in models:
                key = _free_name(objects, model.name)
                place, shards = self._shards(model.folder)
                if shards:
                    parents = (name for name in (model.name, model.base) if name in registry)
                    parent = next(parents, None)
                    if parent is None:
                        registry.add_base(str(place), key, verbose=False)
                    else:
                        registry.add_derived(str(place), key, parent, verbose=False)
                heads = {str(path): objects.put_bytes(shard.head) for path, shard in shards.items()}
                others = [path for path in model_files(model.folder) if path not in shards]
                files = {str(path): objects.put_file(model.folder / path) for path in others}
                objects.write_model(key, {"heads": heads, "files": files})
                receipt[model.name] = key
        return receipt

    def restore(self, store: Path, receipt: Receipt, dest: Path) -> None:
        """Every tensor to its place in its file, then all other files."""
        objects = FileObjects(store, self._codec)
        with self._registry.Registry(store / _REGISTRY, create=False) as registry:
            hashes = {item["name"]: item["weights_hash"] for item in registry.list_models()}
            for name, key in receipt.items():
                model = objects.read_model(key)
                (dest / name).mkdir()
                for path in (*model["heads"], *model["files"]):
                    (dest / name / path).parent.mkdir(parents=True, exist_ok=True)
                if model["heads"]:
                    heads = {
                        dest / name / path: objects.get_bytes(item) for path, item in model["heads"].items()
                    }
                    self._rebuild(registry.tensors(key), heads, hashes[key])
                for path, digest in model["files"].items():
                    objects.get_file(digest, dest / name / path)

    def stored_bytes(self, store: Path) -> int:
        """The registry and what is kept beside it."""
        return tree_bytes(store)

    def _rebuild(self, tensors: Any, heads: dict[Path, bytes], expected: str) -> None:
        weights = self._hashlib.sha256()
        with ExitStack() as stack:
            places = {}
            for path, head in heads.items():
                file = stack.enter_context(path.open("wb"))
                file.write(head)
                file.flush()
                header, start = self._safetensors.read_header(path)
                for tensor, (begin, _) in _spans(header, start).items():
                    places[tensor] = (file, begin)
            for tensor, *_, data in tensors:
                weights.update(data)
                file, begin = places[tensor]
                file.seek(begin)
                file.write(data)
        if weights.hexdigest() != expected:
            raise PeerFailed(f"The weights of {', '.join(map(str, heads))} are not those that were added.")

    def _shards(self, folder: Path) -> tuple[Path, dict[Path, Shard]]:
        """Return where a model's weights lie and the files of them that go into the registry, by path.

        Those are all that reminis takes of the one folder that has safetensors files; and none if there are
        several such folders, or reminis would lose any byte.
        """
        places = {path.parent for path in folder.rglob("*.safetensors")}
        if len(places) != 1:
            return folder, {}
        place = places.pop()
        try:
            paths, _ = self._safetensors.resolve_shards(place)
            shards = {path.relative_to(folder): self._shard(path) for path in dict.fromkeys(paths)}
        except (OSError, ValueError):
            return place, {}
        names = [name for shard in shards.values() for name in shard.spans]
        return place, shards if len(names) == len(set(names)) else {}  # Of two of a name, it would keep one.

    def _shard(self, path: Path) -> Shard:
        header, start = self._safetensors.read_header(path)
        spans = _spans(header, start)
        position = start
        for begin, end in sorted(spans.values()):
            if begin != position or end - begin > _LARGEST:
                raise ValueError(f"{path} is not all tensors that SQLite takes.")
            position = end
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        if position != path.stat().st_size or not dtypes <= set(self._dtypes.SAFETENSORS_DTYPES):
            raise ValueError(f"{path} has bytes or types that reminis does not take.")
        with path.open("rb") as file:
            return Shard(file.read(start), spans)


def _spans(header: dict[str, Any], start: int) -> dict[str, tuple[int, int]]:
    offsets = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: (start + begin, start + end) for name, (begin, end) in offsets.items()}


def _free_name(objects: FileObjects, name: str) -> str:
    """Return a name for the next version of a model: the registry takes each only once."""
    version, free = 1, name
    while objects.has_model(free):
        version += 1
        free = f"{name}~{version}"
    return free
