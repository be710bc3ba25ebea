"""A process that adds, tags and deletes in a loop, and says what a store acknowledged. It ends by being killed.

    python adder.py STORE WORK NAME

Each line of output is one acknowledged act: "add REF SEED", "tag REF SEED" or "delete REF -". A line that
starts with "?" says what is about to be tried.
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from fakes.families import fine_tune
from fakes.predicting import FAMILY, predict_from_now_on, relative
from fakes.stores import model_of, noise, write_model

from casstore.api.store import Store


def model(seed):
    """Return the model of this seed. Models share files, so that packs are shared; two files become deltas in most."""
    chance = random.Random(seed)
    return model_of(
        tuned=fine_tune(chance.randrange(FAMILY)),
        common=noise(chance.randrange(3), 90_000),
        variant=noise(chance.randrange(20), 40_000),
        relative=relative(chance.randrange(FAMILY)),
        own=noise(1000 + seed, chance.choice((10, 3_000, 150_000))),
        config=b'{"seed": %d}' % seed,
    )


def main(place, work, name):
    predict_from_now_on()
    chance = random.Random(name)
    store = Store(place)
    mine = []
    for number in itertools.count():
        seed = chance.randrange(10_000)
        folder = write_model(model(seed), os.path.join(work, f"{name}-{number}"))
        ref = f"models/{name}/{chance.randrange(8)}"
        say("?add", ref, seed)
        store.add(folder, ref=ref)
        say("add", ref, seed)
        shutil.rmtree(folder)
        mine.append(ref)
        if number % 3 == 1:
            say("?tag", f"tags/{name}", seed)
            store.tag(name, ref)
            say("tag", f"tags/{name}", seed)
        if number % 5 == 4:
            gone = chance.choice(sorted(set(mine)))
            say("?delete", gone, "-")
            store.rm(gone)
            say("delete", gone, "-")
            mine = [other for other in mine if other != gone]


def say(*words):
    # One write call for each line, or a kill could tear it.
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
