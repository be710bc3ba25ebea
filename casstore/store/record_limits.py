"""What a record of this store can hold, checked before any work is done (invariant 14)."""

from __future__ import annotations

from typing import Any

from casstore.digest import DIGEST_SIZE
from casstore.format import names
from casstore.format import record as record_format
from casstore.format.record import Record
from casstore.objects import MAX_HINTS


def check_record(name: str, metadata: dict[str, Any]) -> None:
    """Raise ConfigError, before any work is done, for metadata that no record of `name` can hold."""
    record_format.check_writable(
        Record(
            name=name,
            seq=1,
            write_id=bytes(names.WRITE_ID_SIZE),
            time=0,
            writer="",
            target=bytes(DIGEST_SIZE),
            inline=bytes(record_format.MAX_INLINE),
            metadata=metadata,
            packs=(bytes(DIGEST_SIZE),) * MAX_HINTS,
        )
    )
