"""The id of a workflow's input model: the whole hash of its content, not eight digits."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

from casstore.cache.olive.collect import collect
from casstore.digest import digest
from casstore.machine.state import MachineState, state_path
from casstore.store.adding.content import content_id

if TYPE_CHECKING:
    from collections.abc import Callable

_NO_STORE = bytes(16)


def input_model_id(config: Any, original: Callable[[Any], str]) -> str:
    """Return the id of a model config of Olive: 64 hex digits, the model id it would be cached under.

    A model on a hub counts by the commit that its name resolves to now. Configs with callables keep the id
    that Olive gives them, since callables cannot be compared.
    """
    if any(callable(value) for value in config.config.values()):
        return original(config)
    collected = collect(config.to_json())
    if not collected.files:
        identifier = config.get_model_identifier()
        value = {"identifier": identifier, "model": collected.document.model}
        return digest(json.dumps(value, sort_keys=True, default=str).encode()).hex()
    with collected.with_document() as files:
        return content_id(files, _machine()).hex()


@functools.cache
def _machine() -> MachineState:
    """Return where this machine keeps the ids of files outside any store."""
    return MachineState(state_path(_NO_STORE, "input-models"))
