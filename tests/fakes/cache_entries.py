"""Models as a pipeline's cache writes them, with the runs that made them, without running anything."""

from __future__ import annotations

import time

from fakes.stores import write_model

from casstore.cache.run_cache import RunCacheManager
from casstore.format import names
from casstore.format.run import RunKey, RunManifest, RunStatus
from casstore.objects.keys import INDEX_PREFIX, PACK_PREFIX

STAMP = {"workflow": "w", "type": "folder"}
"""The metadata by which a collector knows a model of a cache."""


def add_entry(store, folder, name, content, *, made_of=None, seconds=1.0):
    """Add a cache entry; `made_of` is the id of the model that a run made it of in so many seconds. Return its model id."""
    added = store.add(
        write_model(content, folder),
        ref=f"models/{name}",
        metadata=STAMP,
        stat_cache=False,
        ignore_file=False,
    )
    if made_of is not None:
        RunCacheManager(store).cache_run(
            RunManifest(
                name=name,
                key=RunKey(made_of, "pass", "1", {"name": name}),
                status=RunStatus.DONE,
                input=bytes.fromhex(made_of),
                output=bytes.fromhex(added.model_id),
                input_name="",
                started=time.time_ns(),
                duration=int(seconds * 1e9),
                config={"name": name},
            )
        )
    return added.model_id


def bytes_of(backend):
    """Return what a bound counts: packs, index and records."""
    return sum(
        entry.size for prefix in (PACK_PREFIX, INDEX_PREFIX, names.PREFIX) for entry in backend.list(prefix)
    )
