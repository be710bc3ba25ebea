"""Mutated inputs without a fuzzing engine: small damage, absurd numbers, pieces of other inputs, and much of one thing."""

from __future__ import annotations

NUMBERS = [value.to_bytes(width, "little") for width in (1, 2, 4, 8) for value in (
    0, 1, (1 << 8 * width - 1) - 1, 1 << 8 * width - 1, (1 << 8 * width) - 1,
)]  # fmt: skip
LONG = 1 << 20
"""Bytes of the longest input; one in a thousand is that long, which shows what is not linear."""


def mutated(chance, seeds):
    """Return one input: a seed after one to four changes."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.randint(1, 40))
        match chance.choice(
            ["flip", "flip", "byte", "number", "cut", "drop", "insert", "copy", "splice", "repeat"]
        ):
            case "flip" if at < len(data):
                data[at] ^= 1 << chance.randrange(8)
            case "byte" if at < len(data):
                data[at] = chance.randrange(256)
            case "number":
                value = chance.choice(NUMBERS)
                data[at : at + len(value)] = value
            case "cut":
                del data[at:]
            case "drop":
                del data[at:end]
            case "insert":
                data[at:at] = chance.randbytes(end - at)
            case "copy":
                begin = chance.randrange(len(data) + 1)
                data[at:end] = data[begin : begin + end - at]
            case "splice":
                other = chance.choice(seeds)
                data[at:] = other[chance.randrange(len(other) + 1) :]
            case "repeat" if at < end:
                size = LONG if chance.random() < 0.01 else 200
                data[at:end] = data[at:end] * (size // (end - at) + 1)
    return bytes(data)
