"""Settings of a cache: where it is, and how it behaves."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from casstore.backend.location import parse_location
from casstore.errors import ConfigError
from casstore.format.paths import check_path
from casstore.store.adding.bases.policy import DeltaOption, delta_policy

_log = logging.getLogger("casstore.cache")

DEFAULT_CACHE_DIR = ".olive-cache"
DEFAULT_WORKFLOW_ID = "default_workflow"
DEFAULT_CHECKOUT_BYTES = 16 << 30
_PUBLIC_ACCOUNT, _PUBLIC_CONTAINER = "olivepublicmodels", "olivecachemodels"
_AZURE = re.compile(r"https://([^./]+)\.blob\.core\.windows\.net/([^/]+)/?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)")


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Settings of a cache; the names are those of Olive's `cache_config`.

    `cache_dir` is a local path, the URL of a shared store, or a list of both. `account_name` and
    `container_name` mean a container of Azure Blob Storage. `workflow_id` is the folder of the working files
    inside the local path. When a run has ended, files of models that only its passes needed go, unless
    `keep_working_files`; `max_checkout_bytes` bounds those of its outputs, which can be made again as well.
    `max_store_bytes` bounds the local store, None does not: what is cheapest to make again goes first, nothing that a
    running pipeline has hit or made.
    `environment` are the fields, chosen by name, that decide what a pass makes; `pass_version` the version
    of passes that state none. `storage_options` go to the shared store's file system. With
    `shared="group"`, a shared store that is made in a folder is for the folder's group. `delta` is that of the local
    `Store`. Raises ConfigError for
    invalid settings, such as URLs with a user or a secret in them.
    """

    cache_dir: str | os.PathLike[str] | list[str] | None = DEFAULT_CACHE_DIR
    clean_cache: bool = False
    clean_evaluation_cache: bool = False
    account_name: str | None = None
    container_name: str | None = None
    enable_shared_cache: bool = False
    update_shared_cache: bool = True
    workflow_id: str | None = None
    max_checkout_bytes: int = DEFAULT_CHECKOUT_BYTES
    keep_working_files: bool = False
    max_store_bytes: int | None = None
    pass_version: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # keys and tokens
    shared: Literal["group"] | None = None
    delta: DeltaOption = "balanced"

    def __post_init__(self) -> None:
        locations = _locations(self.cache_dir)
        for url in filter(is_url, locations):
            parse_location(url)  # Before anything displays or logs it.
        azure = next((match for item in locations if (match := _AZURE.fullmatch(item))), None)
        account = self.account_name or (azure[1] if azure else None)
        container = self.container_name or (azure[2] if azure else None)
        remote = any(map(is_url, locations)) or bool(account and container)
        if self.enable_shared_cache and not remote:
            account, container = account or _PUBLIC_ACCOUNT, container or _PUBLIC_CONTAINER
        if self.workflow_id is not None:
            _check_workflow(self.workflow_id)
        if self.max_checkout_bytes < 0:
            raise ConfigError("max_checkout_bytes must be a number of bytes, 0 or more.")
        if self.max_store_bytes is not None and self.max_store_bytes <= 0:
            raise ConfigError("max_store_bytes must be a number of bytes, 1 or more, or None for no bound.")
        delta_policy(self.delta)
        object.__setattr__(self, "cache_dir", locations)
        object.__setattr__(self, "account_name", account)
        object.__setattr__(self, "container_name", container)
        object.__setattr__(self, "enable_shared_cache", self.enable_shared_cache or remote)

    @classmethod
    def of(cls, value: CacheSettings | Mapping[str, Any] | None) -> CacheSettings:
        """Return a config from one, from a map of settings, or the default; raise ConfigError for others."""
        if value is None or isinstance(value, CacheSettings):
            return value or cls()
        if not isinstance(value, Mapping):
            raise ConfigError(f"A cache config is a map of settings, not {type(value).__name__}.")
        known = {item.name for item in fields(cls)}
        unknown = sorted(set(value) - known)
        if unknown:
            raise ConfigError(
                f"A cache config has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}."
            )
        return cls(**value)

    def get_local_cache_dir(self) -> str:
        """Return the local path, the default one where only a URL is given."""
        return next((item for item in _locations(self.cache_dir) if not is_url(item)), DEFAULT_CACHE_DIR)

    def get_shared_cache_url(self) -> str | None:
        """Return the URL of the shared store, None where none is wanted."""
        if not self.enable_shared_cache:
            return None
        url = next(filter(is_url, _locations(self.cache_dir)), None)
        if url is not None and not _AZURE.fullmatch(url):
            return url
        return f"https://{self.account_name}.blob.core.windows.net/{self.container_name}"


def is_url(location: str) -> bool:
    """Say whether a location is a URL rather than a local path."""
    return _URL.match(location) is not None


def _locations(value: Any) -> list[str]:
    if not value:
        return [DEFAULT_CACHE_DIR]
    found = [os.fspath(item) for item in value] if isinstance(value, (list, tuple)) else [os.fspath(value)]
    if len(found) > 2 or sum(map(is_url, found)) > 1:
        raise ConfigError("cache_dir takes at most one local path and one URL of a shared cache.")
    if len(found) == 2 and not any(map(is_url, found)):
        _log.warning("Two local cache directories are given; the first one is used: %s", found[0])
        return found[:1]
    return [DEFAULT_CACHE_DIR, *found] if all(map(is_url, found)) else found


def _check_workflow(workflow_id: str) -> None:
    check_path(workflow_id)
    if "/" in workflow_id or len(workflow_id.encode()) > _MAX_NAME or workflow_id in RESERVED_NAMES:
        raise ConfigError(f"{workflow_id!r} cannot be a workflow id: use a folder name that is not reserved.")


_MAX_NAME = 255
"""Limit of a folder's name in bytes."""

RESERVED_NAMES = frozenset({"store", "checkouts", "in-use"})
"""Names that are taken beside the workflows' folders."""
