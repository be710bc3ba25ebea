"""Settings of a cache: where it is, and how it behaves."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from casstore.backend.location import parse_location
from casstore.errors import ConfigError
from casstore.format.paths import check_path

if TYPE_CHECKING:
    from casstore.cache.olive_cache import OliveCache

_log = logging.getLogger("casstore.cache")

DEFAULT_CACHE_DIR = ".olive-cache"
DEFAULT_WORKFLOW_ID = "default_workflow"
DEFAULT_CHECKOUT_BYTES = 16 << 30
_PUBLIC_ACCOUNT, _PUBLIC_CONTAINER = "olivepublicmodels", "olivecachemodels"
_AZURE = re.compile(r"https://([^./]+)\.blob\.core\.windows\.net/([^/]+)/?")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:(//|:)")


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """Settings of a cache; the names are those of Olive's `cache_config`.

    `cache_dir` is a local path, the URL of a shared store, or a list of both. `account_name` and
    `container_name` mean a container of Azure Blob Storage. `workflow_id` is the folder of the working files
    inside the local path. `max_checkout_bytes` bounds working files and checkouts that can be made again.
    `environment` are the fields, chosen by name, that decide what a pass makes; `pass_version` the version
    that stands for passes that state none. `storage_options` go to the shared store's file system. With
    `shared="group"`, a shared store that is made in a folder is for the folder's group. Raises ConfigError for
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
    pass_version: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    storage_options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # keys and tokens
    shared: Literal["group"] | None = None

    def __post_init__(self) -> None:
        places = _places(self.cache_dir)
        for place in filter(is_url, places):
            parse_location(place)  # Before anything displays or logs it.
        azure = next((match for place in places if (match := _AZURE.fullmatch(place))), None)
        account = self.account_name or (azure[1] if azure else None)
        container = self.container_name or (azure[2] if azure else None)
        remote = any(map(is_url, places)) or bool(account and container)
        if self.enable_shared_cache and not remote:
            account, container = account or _PUBLIC_ACCOUNT, container or _PUBLIC_CONTAINER
        if self.workflow_id is not None:
            _check_workflow(self.workflow_id)
        if self.max_checkout_bytes < 0:
            raise ConfigError("max_checkout_bytes must be a number of bytes, 0 or more.")
        object.__setattr__(self, "cache_dir", places)
        object.__setattr__(self, "account_name", account)
        object.__setattr__(self, "container_name", container)
        object.__setattr__(self, "enable_shared_cache", self.enable_shared_cache or remote)

    @classmethod
    def of(cls, value: CacheConfig | Mapping[str, Any] | None) -> CacheConfig:
        """Return a config from one, from a map of settings, or the default; raise ConfigError for others."""
        if value is None or isinstance(value, CacheConfig):
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
        return next((place for place in _places(self.cache_dir) if not is_url(place)), DEFAULT_CACHE_DIR)

    def get_shared_cache_url(self) -> str | None:
        """Return the URL of the shared store, None where none is wanted."""
        if not self.enable_shared_cache:
            return None
        url = next((place for place in _places(self.cache_dir) if is_url(place)), None)
        if url is not None and not _AZURE.fullmatch(url):
            return url
        return f"https://{self.account_name}.blob.core.windows.net/{self.container_name}"

    def create_cache(self, workflow_id: str = DEFAULT_WORKFLOW_ID) -> OliveCache:
        """Open the cache of one workflow; this config stays as it is, however often it is used."""
        from casstore.cache.olive_cache import OliveCache  # noqa: PLC0415  # the facade is made from this config

        return OliveCache(replace(self, workflow_id=workflow_id))


def is_url(place: str) -> bool:
    """Say whether a place is a URL rather than a local path."""
    return _URL.match(place) is not None


def _places(value: Any) -> list[str]:
    if not value:
        return [DEFAULT_CACHE_DIR]
    places = [os.fspath(item) for item in value] if isinstance(value, (list, tuple)) else [os.fspath(value)]
    if len(places) > 2 or sum(map(is_url, places)) > 1:
        raise ConfigError("cache_dir takes at most one local path and one URL of a shared cache.")
    if len(places) == 2 and not any(map(is_url, places)):
        _log.warning("Two local cache directories are given; the first one is used: %s", places[0])
        return places[:1]
    if all(map(is_url, places)):
        return [DEFAULT_CACHE_DIR, *places]
    return places


def _check_workflow(workflow_id: str) -> None:
    check_path(workflow_id)
    if "/" in workflow_id or len(workflow_id.encode()) > _MAX_NAME or workflow_id in RESERVED_NAMES:
        raise ConfigError(f"{workflow_id!r} cannot be a workflow id: use a folder name that is not reserved.")


_MAX_NAME = 255
"""Limit of a folder's name in bytes."""

RESERVED_NAMES = frozenset({"store", "checkouts", "in-use"})
"""Names that are taken beside the workflows' folders."""
