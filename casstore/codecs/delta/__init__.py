"""The `delta` encoding: bytes predicted from other chunks, and what the prediction missed. Pure functions on buffers.

A payload is a list of pieces, each a prediction for a range of the output, with literal bytes between them. `operations/` has
the operations of which predictions are made; a new one is a module there, and nothing else changes.
"""

from __future__ import annotations

from casstore.codecs.delta.decoder import Delta, decode_deltas
from casstore.codecs.delta.encoder import DeltaInput, EncodedDelta, encode_delta, encode_deltas
from casstore.codecs.delta.operations.cast import cast_step
from casstore.codecs.delta.operations.combine import Combination, combine_step
from casstore.codecs.delta.operations.floats import Rounding
from casstore.codecs.delta.operations.gguf import gguf_step, scales_of
from casstore.codecs.delta.operations.gguf_values import block_values
from casstore.codecs.delta.operations.lora import Merge, lora_step
from casstore.codecs.delta.operations.quantise import Axis, Rule, quantise_step
from casstore.codecs.delta.operations.transpose import transpose_step
from casstore.codecs.delta.piece import LITERALS, SAME, Extent, Order, Piece, Residual, Step, same
from casstore.codecs.delta.predict import piece_of
from casstore.codecs.delta.programs import cast, combine, combine_steps, gguf, lora, mean, quantise, transpose

__all__ = [
    "LITERALS",
    "SAME",
    "Axis",
    "Combination",
    "Delta",
    "DeltaInput",
    "EncodedDelta",
    "Extent",
    "Merge",
    "Order",
    "Piece",
    "Residual",
    "Rounding",
    "Rule",
    "Step",
    "block_values",
    "cast",
    "cast_step",
    "combine",
    "combine_step",
    "combine_steps",
    "decode_deltas",
    "encode_delta",
    "encode_deltas",
    "gguf",
    "gguf_step",
    "lora",
    "lora_step",
    "mean",
    "piece_of",
    "quantise",
    "quantise_step",
    "same",
    "scales_of",
    "transpose",
    "transpose_step",
]
