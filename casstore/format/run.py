"""Manifests of runs (what a pass made of a model) and of evaluations (how a model was measured).

The run key is the BLAKE3 of the canonical bytes of everything that decides the output (invariant 12); everything
else is recorded, not keyed.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casstore.digest import digest
from casstore.errors import FormatError
from casstore.format import canonical, fields
from casstore.format.key_order import in_key_order, key_order

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEY_VERSION = 1
RUN_VERSION = 1
EVALUATION_VERSION = 1


class RunStatus(enum.Enum):
    """The state of a run."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    PRUNED = "pruned"


@dataclass(frozen=True, slots=True)
class RunKey:
    """Everything that decides the output of a pass.

    `input` identifies the input model by content, `config` is canonical with files by content,
    `environment` the allow-listed fields that matter.
    """

    input: str
    pass_name: str
    pass_version: str
    config: dict[str, Any]
    accelerator: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the value whose canonical bytes are hashed."""
        return {
            "type": "run-key",
            "version": KEY_VERSION,
            "input": self.input,
            "pass": self.pass_name,
            "pass_version": self.pass_version,
            "config": self.config,
            "accelerator": self.accelerator,
            "environment": self.environment,
        }

    def digest(self) -> bytes:
        """Return the key; raises ConfigError for a config that has no canonical form."""
        return digest(canonical.encode(self.document()))


@dataclass(frozen=True, slots=True)
class RunManifest:
    """One run of a pass.

    `name` is the pipeline's name of its output; `input` and `output` are model ids, None if the input is
    not in a store or there is no output. `input_name` is the pipeline's name of the input. `started` is in
    nanoseconds since 1970, `duration` in nanoseconds. `recorded` is the run's environment, `artifacts`
    maps names to model ids. These links are weak: the run does not keep what it names (design §8).
    """

    name: str
    key: RunKey
    status: RunStatus
    input: bytes | None
    output: bytes | None
    input_name: str
    started: int
    duration: int
    config: dict[str, Any]
    recorded: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    error: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def same_result(self, other: RunManifest) -> bool:
        """Say whether both runs had the same result, whenever and wherever they ran."""
        # Compare the keys' bytes, since a NaN in a config is not even equal to itself.
        mine, its = self.key.digest(), other.key.digest()
        return (mine, self.status, self.output) == (its, other.status, other.output)


@dataclass(frozen=True, slots=True)
class EvaluationManifest:
    """An evaluation of a model: `evaluator` identifies how it was measured, `model` is the model's id if known."""

    name: str
    model: bytes | None
    evaluator: str
    result: dict[str, Any]
    recorded: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


_RUN = "run"
_EVALUATION = "evaluation"
_RUN_FIELDS = frozenset(
    {
        "type", "version", "requires", "name", "key", "status", "input", "output", "input_name", "started",
        "duration", "config", "recorded", "metrics", "artifacts", "error", "key_order",
    }
)  # fmt: skip
_EVALUATION_FIELDS = frozenset(
    {"type", "version", "requires", "name", "model", "evaluator", "result", "recorded", "key_order"}
)


def encode_run(run: RunManifest) -> bytes:
    """Return the canonical bytes of a run; raise ConfigError if `decode_run` would refuse them."""
    data = canonical.encode(
        {
            **run.extra,
            "type": _RUN,
            "version": RUN_VERSION,
            "name": run.name,
            "key": run.key.document(),
            "status": run.status.value,
            "input": run.input,
            "output": run.output,
            "input_name": run.input_name,
            "started": run.started,
            "duration": run.duration,
            "config": run.config,
            "recorded": run.recorded,
            "metrics": run.metrics,
            "artifacts": run.artifacts,
            "error": run.error,
            **_key_orders(config=run.config, recorded=run.recorded, metrics=run.metrics),
        }
    )
    fields.check_readable(data, decode_run, kind=_RUN)
    return data


def decode_run(data: Buffer) -> RunManifest:
    """Read a run; raise FormatError for anything else."""
    value = fields.decode_map(data, kind=_RUN, version=RUN_VERSION)
    artifacts = fields.field(value, "artifacts", dict, kind=_RUN)
    try:
        status = RunStatus(fields.field(value, "status", str, kind=_RUN))
    except ValueError as error:
        # Invariant 4: an unknown state is an error, never guessed at.
        raise FormatError(f"A run has the unknown status {value['status']!r}.") from error
    return RunManifest(
        name=fields.field(value, "name", str, kind=_RUN),
        key=_decode_key(fields.field(value, "key", dict, kind=_RUN)),
        status=status,
        input=fields.optional_id(value, "input", kind=_RUN),
        output=fields.optional_id(value, "output", kind=_RUN),
        input_name=fields.field(value, "input_name", str, kind=_RUN),
        started=fields.field(value, "started", int, kind=_RUN),
        duration=fields.field(value, "duration", int, kind=_RUN),
        config=_ordered_map(value, "config", kind=_RUN),
        recorded=_ordered_map(value, "recorded", kind=_RUN),
        metrics=_ordered_map(value, "metrics", kind=_RUN),
        artifacts={name: _artifact(artifacts, name) for name in artifacts},
        error=fields.field(value, "error", str, kind=_RUN),
        extra=fields.unknown_keys(value, _RUN_FIELDS),
    )


def encode_evaluation(evaluation: EvaluationManifest) -> bytes:
    """Return the canonical bytes of an evaluation; raise ConfigError if `decode_evaluation` would refuse them."""
    data = canonical.encode(
        {
            **evaluation.extra,
            "type": _EVALUATION,
            "version": EVALUATION_VERSION,
            "name": evaluation.name,
            "model": evaluation.model,
            "evaluator": evaluation.evaluator,
            "result": evaluation.result,
            "recorded": evaluation.recorded,
            **_key_orders(result=evaluation.result, recorded=evaluation.recorded),
        }
    )
    fields.check_readable(data, decode_evaluation, kind=_EVALUATION)
    return data


def decode_evaluation(data: Buffer) -> EvaluationManifest:
    """Read an evaluation; raise FormatError for anything else."""
    value = fields.decode_map(data, kind=_EVALUATION, version=EVALUATION_VERSION)
    return EvaluationManifest(
        name=fields.field(value, "name", str, kind=_EVALUATION),
        model=fields.optional_id(value, "model", kind=_EVALUATION),
        evaluator=fields.field(value, "evaluator", str, kind=_EVALUATION),
        result=_ordered_map(value, "result", kind=_EVALUATION),
        recorded=_ordered_map(value, "recorded", kind=_EVALUATION),
        extra=fields.unknown_keys(value, _EVALUATION_FIELDS),
    )


def _key_orders(**maps: dict[str, Any]) -> dict[str, Any]:
    """Return the field that keeps the order in which maps were written; none where all are sorted."""
    orders = {name: order for name, value in maps.items() if (order := key_order(value))}
    return {"key_order": orders} if orders else {}


def _ordered_map(value: dict[str, Any], name: str, *, kind: str) -> dict[str, Any]:
    found = fields.field(value, name, dict, kind=kind)
    orders = value.get("key_order", {})
    order = orders.get(name, "") if isinstance(orders, dict) else None
    try:
        ordered: dict[str, Any] = in_key_order(found, str(order))
    except ValueError as error:
        # Invariant 4: an order that does not fit is an error, never guessed at.
        raise FormatError(
            f"The order of the keys of `{name}` of a {kind} cannot be used: {error}."
        ) from error
    return ordered


def _decode_key(document: dict[str, Any]) -> RunKey:
    kind = "run key"
    accelerator = document.get("accelerator")
    key = RunKey(
        input=fields.field(document, "input", str, kind=kind),
        pass_name=fields.field(document, "pass", str, kind=kind),
        pass_version=fields.field(document, "pass_version", str, kind=kind),
        config=fields.field(document, "config", dict, kind=kind),
        accelerator=accelerator if isinstance(accelerator, str) else None,
        environment=fields.field(document, "environment", dict, kind=kind),
    )
    if key.document() != document:
        raise FormatError("The key of a run has fields that this version of casstore does not know.")
    return key


def _artifact(artifacts: dict[str, Any], name: str) -> bytes:
    found = fields.optional_id(artifacts, name, kind=_RUN)
    if found is None:
        raise FormatError(f"The artifact {name!r} of a run names nothing.")
    return found
