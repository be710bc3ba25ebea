"""The order in which cache entries go, against plain Python that looks at everything again for each step."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from casstore.ops.gc.policies.entries import Run, costs
from casstore.ops.gc.policies.eviction import Holders, victims

OBJECTS = 12
MODELS = st.lists(st.frozensets(st.integers(0, OBJECTS - 1), max_size=6), min_size=1, max_size=7)


def brute_force(held, sizes, kept, prices, used):
    """Yield (model, bytes that it frees), the next to go first."""
    left = dict(enumerate(held))

    def frees(model):
        others = set(kept).union(*(objects for other, objects in left.items() if other != model))
        return sum(sizes[item] for item in left[model] - others)

    def value(model):
        return (prices[model] / frees(model) if frees(model) else math.inf, prices[model], model)

    while left:
        cheap = [model for model in left if not math.isnan(prices[model])]
        model = min(cheap, key=value) if cheap else min(left, key=lambda model: (used[model], model))
        yield model, frees(model)
        del left[model]


@given(
    MODELS,
    st.lists(st.integers(1, 50), min_size=OBJECTS, max_size=OBJECTS),
    st.frozensets(st.integers(0, OBJECTS - 1), max_size=4),
    st.data(),
)
def test_the_order_is_that_of_brute_force(held, sizes, kept, data):
    count = len(held)
    prices = data.draw(
        st.lists(st.sampled_from([0.0, 1.0, 2.5, 100.0, math.nan]), min_size=count, max_size=count)
    )
    used = data.draw(st.lists(st.integers(0, 3).map(float), min_size=count, max_size=count))
    mask = np.zeros(OBJECTS, np.bool_)
    mask[list(kept)] = True
    holders = Holders(
        [np.array(sorted(objects), np.int64) for objects in held],
        sizes=np.array(sizes, np.int64),
        kept=mask,
    )
    order = victims(holders, costs=np.array(prices), used=np.array(used))
    gone = []
    for found, wanted in zip(order, brute_force(held, sizes, kept, prices, used), strict=True):
        assert found == wanted
        gone.append(found[0])
        left = set(kept).union(*(held[model] for model in range(count) if model not in gone))
        freed = {item for model in gone for item in held[model]} - left
        assert set(holders.freed(gone).tolist()) == freed
        assert set(np.flatnonzero(holders.held()).tolist()) == left - set(kept)


IDS = [bytes([number]) * 32 for number in range(6)]
RUNS = st.lists(
    st.builds(Run, st.sampled_from(IDS), st.sampled_from(IDS), st.sampled_from([0.0, 1.0, 2.0, 7.0])),
    max_size=8,
)


def cheapest(model, runs, origins, seen=frozenset()):
    """Return what making a model costs, by trying every chain of runs."""
    if model in origins:
        return 0.0
    prices = [
        run.seconds + cheapest(run.input, runs, origins, seen | {model})
        for run in runs
        if run.output == model and run.input not in seen | {model}
    ]
    return min(prices, default=math.inf)


@given(RUNS, st.frozensets(st.sampled_from(IDS), max_size=4), st.frozensets(st.sampled_from(IDS), max_size=2))
def test_a_cost_is_that_of_the_cheapest_chain(runs, entries, kept):
    entries -= kept
    outputs = {run.output for run in runs}
    usable = [run for run in runs if run.input != run.output and run.input in outputs | kept | entries]
    origins = kept | {entry for entry in entries if entry not in {run.output for run in usable}}
    wanted = {entry: cheapest(entry, usable, origins) for entry in entries - origins}
    assert costs(runs, entries, kept) == {
        entry: cost for entry, cost in wanted.items() if not math.isinf(cost)
    }
