"""How commands show lineage: links, models and evaluations, as JSON and as cells of a table."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from casstore.cli.support.text import human_duration, local_time, short_id, utc_time
from casstore.ops.metrics import metrics_of

if TYPE_CHECKING:
    from casstore.ops.lineage import Lineage, Link, ModelEvaluation, ModelNode

_SHOWN_METRICS = 8


def plain(value: Any) -> Any:
    """Return a value as JSON can hold it: bytes as hex, numbers that are none (NaN, infinities) as text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value.hex() if isinstance(value, bytes) else value


def value_text(value: Any) -> str:
    """Return a value as one cell of a table."""
    return value if isinstance(value, str) else json.dumps(plain(value))


def link_as_json(link: Link) -> dict[str, Any]:
    """Return a link under stable keys; what is not known is null."""
    return {
        "input": link.input or None,
        "input_name": link.input_name or None,
        "output": link.output or None,
        "run": link.run or None,
        "pass": link.pass_name or None,
        "status": link.status or None,
        "workflow": link.workflow or None,
        "alias": link.alias or None,
        "time": utc_time(link.time_ns),
        "time_ns": link.time_ns,
        "duration_seconds": link.duration / 1e9 if link.run else None,
    }


def node_as_json(node: ModelNode) -> dict[str, Any]:
    """Return a model under stable keys."""
    return {
        "model_id": node.model_id,
        "refs": node.refs,
        "time": utc_time(node.time_ns),
        "time_ns": node.time_ns,
        "made_by": node.made_by,
    }


def evaluation_as_json(evaluation: ModelEvaluation) -> dict[str, Any]:
    """Return an evaluation under stable keys."""
    return {
        "evaluation": evaluation.name,
        "model_id": evaluation.model or None,
        "evaluator": evaluation.evaluator or None,
        "time": utc_time(evaluation.time_ns),
        "time_ns": evaluation.time_ns,
        "result": plain(evaluation.result),
    }


def lineage_as_json(lineage: Lineage) -> dict[str, Any]:
    """Return a lineage under stable keys."""
    return {
        "ancestors": [node_as_json(node) for node in lineage.ancestors],
        "descendants": [node_as_json(node) for node in lineage.descendants],
        "links": [link_as_json(link) for link in lineage.links],
        "evaluations": [evaluation_as_json(item) for item in lineage.evaluations],
    }


def link_cells(link: Link | None) -> tuple[str, str, str, str]:
    """Return pass, input, status and duration, "-" for what there is none of."""
    if link is None:
        return ("-", "-", "-", "-")
    source = short_id(link.input) if link.input else link.input_name
    took = human_duration(link.duration / 1e9) if link.duration else "-"
    return (link.pass_name or "-", source or "-", link.status or "-", took)


def node_cells(node: ModelNode) -> tuple[str, str, str]:
    """Return refs, short id and time of a model."""
    return (", ".join(node.refs) or "(not in the store)", short_id(node.model_id), local_time(node.time_ns))


def metrics_text(result: dict[str, Any]) -> str:
    """Return the numbers in a result: `accuracy=0.91 latency.avg=3.2`, the first few of many."""
    found = [(name, _number(value)) for name, value in metrics_of(result).items()]
    more = ", …" if len(found) > _SHOWN_METRICS else ""
    return ", ".join(f"{name}={value}" for name, value in found[:_SHOWN_METRICS]) + more


def _number(value: float) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
