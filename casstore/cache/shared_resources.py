"""Shares downloaded resources with other machines: through the local store and the shared cache."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from casstore.errors import CasstoreError
from casstore.format.paths import check_path

if TYPE_CHECKING:
    from casstore.api.store import Store
    from casstore.cache.sharing import Sharing

_log = logging.getLogger("casstore.cache")

_SAVED = "saved"


class SharedResources:
    """The resources in a shared cache. A failure is logged, and the resource is downloaded instead."""

    def __init__(self, local: Store, sharing: Sharing) -> None:
        self._local = local
        self._sharing = sharing

    def fetch(self, name: str, dest: str) -> str | None:
        """Write the files of a resource into the empty folder `dest`; return the path of the resource in it."""
        ref = _ref(name)
        try:
            if not self._sharing.pull(ref):
                return None
            record = self._local.record(ref)
            saved = record.metadata.get(_SAVED) if record is not None else None
            if record is None or not isinstance(saved, str):
                return None
            check_path(saved)
            self._local.checkout_record(record, dest)
        except (CasstoreError, OSError) as error:
            # Invariant 11: the resource is downloaded from its origin instead.
            _log.warning("The resource %s could not be taken from the shared cache: %s", name, error)
            return None
        return saved

    def keep(self, name: str, folder: str, saved: str) -> None:
        """Share a resource that was downloaded into `folder`, where it is the file or folder `saved`."""
        try:
            self._local.add(
                folder, ref=_ref(name), metadata={_SAVED: saved, "type": "resource"}, ignore_file=False
            )
        except (CasstoreError, OSError) as error:
            # Invariant 11: the resource is here, and other machines download it themselves.
            _log.warning("The resource %s could not be shared: %s", name, error)
        else:
            self._sharing.push([_ref(name)])


def _ref(name: str) -> str:
    return f"models/resources/{name}"
