"""SharedCache: a shared store with the methods that Olive's class of this name has."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from casstore.cache.document import flag_lazy
from casstore.cache.model_cache import model_ref
from casstore.cache.olive.collect import collect
from casstore.cache.run_cache import RunCacheManager, run_ref
from casstore.cache.runs.run_json import new_run, run_json
from casstore.cache.shared.store import SharedStore
from casstore.cache.transfer import ModelFileTransfer
from casstore.cache.views import write_json
from casstore.errors import RefNotFound
from casstore.machine.local_names import local_path


class SharedCache(SharedStore):
    """A store elsewhere through which machines share; models and runs come and go as Olive's callers expect."""

    def cache_model(self, model_id: str, model_json: dict[str, Any]) -> None:
        """Add a model config with its files straight from where they are."""
        self._transfer().upload_model(collect(model_json), model_ref(model_id))

    def load_model(self, model_id: str, model_json_path: str | os.PathLike[str]) -> dict[str, Any] | None:
        """Write a model's config, its files left where they are, to `model_json_path`; None if there is none.

        The config has `shared_cache` set, and paths relative to the model: `download_model` makes it usable.
        """
        record = self.record(model_ref(model_id))
        document = self._transfer().read_config(record) if record is not None else None
        if document is None:
            return None
        write_json(Path(model_json_path), flag_lazy(document.model))
        return document.model

    def download_model(self, model_config: Any, model_id: str, dest: str | os.PathLike[str]) -> Any:
        """Write a model's files below `dest`; return `model_config` with its paths there.

        `model_config` is a map, or an object whose `config` is one. Raises RefNotFound if there is none.
        """
        record = self.record(model_ref(model_id))
        if record is None:
            raise RefNotFound(f"{self.url} has no model named {model_id!r}.")
        target = os.path.join(os.path.abspath(dest), "model")
        document = self._transfer().download_model(record, target)
        assert document is not None
        return replace_config(model_config, document.located(lambda path: local_path(target, path)))

    def cache_run(self, model_id: str, run_json_path: str | os.PathLike[str]) -> None:
        """Record the run that made a cached model, from the file in which Olive keeps it."""
        stated = json.loads(Path(run_json_path).read_bytes())
        output = self.record(model_ref(model_id))
        runs = RunCacheManager(self.remote)
        key = runs.key(
            str(stated.get("pass_name", "")),
            stated.get("pass_config"),
            input_model=f"name:{stated.get('input_model_id', '')}",
            accelerator=stated.get("accelerator_spec"),
        )
        runs.cache_run(new_run(model_id, key, stated, output=output.target if output is not None else None))

    def load_run(self, model_id: str, run_json_path: str | os.PathLike[str]) -> dict[str, Any]:
        """Write the run that made a model to `run_json_path`, as Olive does, and return it; {} if there is none."""
        store = self.existing()
        run = RunCacheManager(store).load_run(model_id) if store is not None else None
        if run is None:
            return {}
        write_json(Path(run_json_path), run_json(run))
        return run_json(run)

    def upload_model_files(self, model_path: str | None, ref: str) -> None:
        """Add a file or folder as the model `ref`; a model on a hub, which has no files here, is left alone."""
        self._transfer().upload_model_files(model_path, ref if ref.startswith("models/") else f"models/{ref}")

    def exist_in_shared_cache(self, name: str) -> bool:
        """Say whether a model, or a ref, is there by this exact name.

        `<id>/model.json` and `<id>/run.json` mean a model and a run, as Olive's callers expect.
        """
        first, slash, rest = name.partition("/")
        if not slash or rest == "model.json":
            return self.exists(model_ref(first))
        return self.exists(run_ref(first) if rest == "run.json" else name)

    def _transfer(self) -> ModelFileTransfer:
        return ModelFileTransfer(self.remote)


def replace_config(model_config: Any, located: dict[str, Any]) -> Any:
    """Put the paths of `located` into a model config, which is a map or has one; return it."""
    config = model_config["config"] if isinstance(model_config, dict) else model_config.config
    config.clear()
    config.update(located.get("config", {}))
    return model_config
