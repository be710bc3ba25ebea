"""What `Store` returns about refs, files and tensors. Ids are hex text, times are `datetime` in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casstore.format.names import names_model
from casstore.store.times import utc

if TYPE_CHECKING:
    from datetime import datetime

    from casstore.format.record import Record
    from casstore.refs.rows import RefRow


@dataclass(frozen=True, slots=True)
class RefInfo:
    """The value of a ref: which model it names since `time`, and what was said about it.

    `model_id` is "" for a run, an evaluation, and a deletion in a ref's log. `base` is the id of the model that this
    one was made from. `time` is by the clock of `writer`, the machine that wrote it.
    """

    name: str
    model_id: str
    base: str | None
    time: datetime
    writer: str
    metadata: dict[str, Any]

    @classmethod
    def of(cls, value: Record | RefRow) -> RefInfo:
        """Return the public form of a record, or of a row of a listing."""
        target = value.target if value.target is not None and names_model(value.name) else b""
        base = value.base.hex() if value.base is not None else None
        return cls(value.name, target.hex(), base, utc(value.time), value.writer, value.metadata)


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file of a model: `file_id` is the BLAKE3 of its bytes, as `b3sum` prints it."""

    path: str
    size: int
    file_id: str
    executable: bool


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a model: `dtype` is named as in safetensors or GGUF (BF16, F8_E4M3, Q4_K), `file` holds it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
