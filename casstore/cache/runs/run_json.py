"""Runs as people and Olive read them: a map of input, pass, config and accelerator, as in `run.json`."""

from __future__ import annotations

import hashlib
import json
import time
from typing import TYPE_CHECKING, Any

from casstore.cache.run_cache import recorded_environment
from casstore.cache.values import plain
from casstore.format.run import RunManifest, RunStatus

if TYPE_CHECKING:
    from collections.abc import Mapping

    from casstore.format.run import RunKey


def get_run_json(
    pass_name: str, pass_config: Mapping[str, Any], input_model_id: str, accelerator_spec: object
) -> dict[str, Any]:
    """Return what a run consists of, as Olive writes it."""
    return {
        "input_model_id": input_model_id,
        "pass_name": pass_name,
        "pass_config": pass_config,
        "accelerator_spec": str(accelerator_spec) if accelerator_spec else None,
    }


def run_json(run: RunManifest) -> dict[str, Any]:
    """Return a recorded run as Olive writes it."""
    name = run.recorded.get("pass_name", run.key.pass_name)
    return {
        **get_run_json(name, run.config, run.input_name, run.key.accelerator),
        "output_model_id": run.name,
    }


def new_run(
    name: str,
    key: RunKey,
    stated: Mapping[str, Any],
    *,
    output: bytes | None,
    started: int | None = None,
    recorded: Mapping[str, str] | None = None,
) -> RunManifest:
    """Return the run called `name`, which is done now; `stated` is what `get_run_json` returned."""
    now = time.time_ns()
    begun = now if started is None else started
    return RunManifest(
        name=name,
        key=key,
        status=RunStatus.DONE,
        input=None,
        output=output,
        input_name=str(stated.get("input_model_id") or ""),
        started=begun,
        duration=max(0, now - begun),
        config=plain(dict(stated.get("pass_config") or {}), what="The config of a pass"),
        recorded={
            **recorded_environment(),
            **plain(dict(recorded or {}), what="What is recorded of a run"),
            "pass_name": str(stated.get("pass_name", "")),
        },
    )


def alias(stated: dict[str, Any]) -> str:
    """Return the eight digits by which Olive would know a run."""
    value = plain({**stated, "pass_name": str(stated["pass_name"]).lower()}, what="A run")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
