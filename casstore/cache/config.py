"""CacheConfig: the settings of a cache, as Olive's class of this name has them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from casstore.cache.olive_cache import OliveCache
from casstore.cache.settings import DEFAULT_WORKFLOW_ID, CacheSettings


@dataclass(frozen=True, slots=True)
class CacheConfig(CacheSettings):
    """Settings that can open the cache which they describe."""

    __doc__ = CacheSettings.__doc__

    def create_cache(self, workflow_id: str = DEFAULT_WORKFLOW_ID) -> OliveCache:
        """Open the cache of one workflow; this config stays as it is, however often it is used."""
        return OliveCache(replace(self, workflow_id=workflow_id))
