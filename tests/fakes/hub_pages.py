"""A store to look at: a pipeline's models with runs and evaluations, and names and cards that would like to run."""

from __future__ import annotations

import json
import time

import numpy as np
from fakes.model_files import safetensors_bytes

from casstore.cache.run_cache import RunCacheManager
from casstore.format.run import RunKey, RunManifest, RunStatus

EVIL = "<img src=x onerror=\"document.title='run'\">"
EVIL_NAME = "<script>document.title='run'<!script>"
EVIL_CARD = f"""---
license: apache-2.0
<script>: '{EVIL}'
---
# Evil <script>document.title='run'</script>

{EVIL} <iframe src="/"></iframe> <style>body {{ display: none }}</style> <form action="https://evil.example"><input name=a></form>

[click](javascript:document.title='run') <a href="https://evil.example" onclick="document.title='run'">there</a>
![outside](https://evil.example/pixel.png) ![up](../../../usage) ![inside](picture.png) [file](config.json)

<svg onload="document.title='run'"><circle r=9></svg>

| a | b |
| - | - |
| `<b>` | {EVIL} |
"""
CARD = """---
license: apache-2.0
pipeline_tag: feature-extraction
---
# MiniLM

A **small** model for tests, with a table:

| task | score |
| --- | ---: |
| STS | 0.82 |

```python
from transformers import AutoModel
```
"""

_STARTED = 1_790_000_000 * 10**9


def weights(seed, *, tuned=0.0, rows=512, names=("embeddings", "encoder", "pooler")):
    """Return tensors; `tuned` changes one of them."""
    found = {}
    for at, name in enumerate(names):
        generator = np.random.default_rng(100 * seed + at)
        values = generator.standard_normal((rows, 256)).astype("<f4") * 0.02
        found[f"{name}.weight"] = values + np.float32(tuned) * (name == "encoder")
        found[f"{name}.bias"] = np.arange(64, dtype="<f2") + at
    return found


def write(folder, tensors, *, card=CARD, **config):
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (folder / "config.json").write_text(json.dumps({"model_type": "test", **config}))
    (folder / "README.md").write_text(card)
    return folder


def run(name, made_of, output, *, pass_name, status=RunStatus.DONE, seconds=1.0, error="", config=None, at=0):
    source = bytes.fromhex(made_of) if len(made_of) == 64 else None
    return RunManifest(
        name=name,
        key=RunKey(made_of, pass_name, "1", config or {"steps": 100}),
        status=status,
        input=source,
        output=bytes.fromhex(output) if output else None,
        input_name="" if source else made_of,
        started=_STARTED + at * 10**9,
        duration=int(seconds * 1e9),
        config=config or {"steps": 100},
        recorded={"platform": "Linux"},
        error=error,
    )


def pipeline(store, folder):
    """Fill a store; return the id of the first model."""
    runs = RunCacheManager(store)

    def add(name, tensors, **options):
        place = write(folder / name.replace("/", "_"), tensors, **options)
        return store.add(place, ref=f"models/{name}", metadata={"workflow": "w"}, stat_cache=False).model_id

    base = add("org/minilm", weights(1))
    tuned = add("org/minilm-tuned", weights(1, tuned=0.01), epochs=3)
    longer = add("org/minilm-tuned-longer", weights(1, tuned=0.02), epochs=9)
    small = add(
        "org/minilm-int8",
        {name: (value * 127).astype("i1") for name, value in weights(1, tuned=0.01).items()},
        bits=8,
    )
    store.tag("production", "models/org/minilm-int8")
    runs.cache_run(run("import-1", "hub:minilm", base, pass_name="import", seconds=0.4))
    runs.cache_run(run("tune-1", base, tuned, pass_name="finetune", seconds=312.5, at=10))
    runs.cache_run(
        run("tune-2", base, longer, pass_name="finetune", seconds=940, config={"steps": 300}, at=20)
    )
    runs.cache_run(run("quantise-1", tuned, small, pass_name="quantise", seconds=12.25, at=400))
    runs.cache_run(
        run(
            "quantise-4bit", tuned, "", pass_name="quantise", status=RunStatus.FAILED, seconds=3,
            error="a matrix is singular", config={"bits": 4}, at=420,
        )
    )  # fmt: skip
    runs.cache_run(run("distil-1", longer, "", pass_name="distil", status=RunStatus.PRUNED, at=430))
    for name, model, accuracy in (
        ("minilm", base, 0.81),
        ("minilm-tuned", tuned, 0.874),
        ("minilm-int8", small, 0.869),
    ):
        runs.cache_evaluation(
            name, {"accuracy": accuracy, "latency": {"avg": 12.5 - 4 * accuracy}}, evaluator="sts", model=bytes.fromhex(model)
        )  # fmt: skip
    return base


def hostile(store, folder):
    """Add a model of which every name and text would like to run."""
    runs = RunCacheManager(store)
    tensors = {f"{EVIL}</th><script>document.title='run'</script>": np.ones(40000, "<f4")}
    place = write(folder / "evil", tensors, card=EVIL_CARD)
    (place / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (place / f"{EVIL.replace('/', '')}.html").write_text(f"<script>document.title='run'</script>{EVIL}")
    added = store.add(place, ref=f"models/{EVIL_NAME}", metadata={EVIL: EVIL}, stat_cache=False)
    store.add(place, ref="models/org/evil", stat_cache=False)
    made_of = store.resolve("models/org/minilm").model_id
    runs.cache_run(run("evil-run", made_of, added.model_id, pass_name=f"</text>{EVIL}", config={EVIL: EVIL}))
    runs.cache_run(run("evil-failed", made_of, "", pass_name=EVIL, status=RunStatus.FAILED, error=EVIL, at=1))
    runs.cache_evaluation(
        "evil", {EVIL: 1.5, "text": EVIL}, evaluator="e", model=bytes.fromhex(added.model_id)
    )
    return added.model_id


def many(store, folder, count):
    """Add many small models; return how long that took."""
    begun = time.perf_counter()
    folder.mkdir()
    for number in range(count):
        (folder / "config.json").write_text(json.dumps({"number": number}))
        store.add(folder, ref=f"models/many/model-{number:04}", stat_cache=False)
    return time.perf_counter() - begun
