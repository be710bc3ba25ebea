"""Whether a store holds what was acknowledged, and nothing that should have gone."""

from __future__ import annotations

import json
from functools import partial

from fakes.stores import read_model
from mixed.children import alone
from mixed.roles import MODELS

from casstore import GcPolicy, Store, execute_gc, plan_gc
from casstore.errors import CasstoreError, RefNotFound
from casstore.ops.check import check
from casstore.ops.gc.survey import works_in_two_phases

EVERYTHING = GcPolicy(orphans_now=True, grace=0, superseded=0)


def judge(url, options, history, folder, *, refs=None, collect=True):
    """Return complaints about a store that nobody uses now, about these refs or all.

    With `collect`, also what they are after everything went that may, and what did not go.
    """
    work = partial(_judge, url, options, history, path=folder / "verdict.json", refs=refs, collect=collect)
    alone(work, folder / "verdict.err")
    return json.loads((folder / "verdict.json").read_text())


def _judge(url, options, history, *, path, refs, collect):
    with Store(url, **options) as store:
        _remove_unacknowledged(store, history, refs)
        found = _faults(store, history, refs, "now")
        if collect:
            try:
                execute_gc(store, plan_gc(store, EVERYTHING), wait=0)
            except CasstoreError as error:
                found.append(f"The last collection failed: {error}")
            found += _faults(store, history, None, "after the last collection")
            found += [f"The last collection left {item}." for item in plan_gc(store, EVERYTHING).items]
            found += [f"The last collection left {entry.key}." for entry in store.backend.list_temporaries()]
    path.write_text(json.dumps(found))


def _remove_unacknowledged(store, history, refs):
    """Delete refs that cannot be read and were never acknowledged, where writers work without the publishers' lock.

    Their writer was killed right after it put the record, before it looked at its packs once more (§8). With a grace of a
    day they would have been there; here it is next to nothing.
    """
    if not works_in_two_phases(store):
        return
    for ref in history.refs if refs is None else refs:
        if len(history.possible(ref)) > 1:
            try:
                read_model(store, ref)
            except RefNotFound:
                continue
            except CasstoreError:
                store.rm(ref)


def _faults(store, history, refs, when):
    found = [f"{when}: {problem}" for problem in check(store, read_data=refs is None).problems]
    for ref in history.refs if refs is None else refs:
        allowed = history.possible(ref)
        try:
            content = read_model(store, ref)
        except RefNotFound:
            content = None
        except CasstoreError as error:
            found.append(f"{when}: {ref} is lost, of {allowed}: {error}")
            continue
        if content not in [None if seed is None else MODELS[seed] for seed in allowed]:
            found.append(f"{when}: {ref} is not one of {allowed}")
    return found
