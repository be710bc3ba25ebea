"""Which side of a ref is newer, by what its records say."""

from __future__ import annotations

import pytest

from casstore.format.record import Record
from casstore.ops.sync.standing import Standing, compare


def told(text):
    """Return the records that a word tells: a letter is a target, upper case with other metadata, - a deletion."""
    return [
        Record(
            name="models/x",
            seq=at + 1,
            write_id=bytes([at]) * 16,
            time=at,
            writer=f"writer of {text}",
            target=None if letter == "-" else letter.lower().encode() * 32,
            manifest=None if letter == "-" else b"m" * 32,
            metadata={"note": "other"} if letter.isupper() else {},
        )
        for at, letter in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("src", "dst", "standing"),
    [
        ("a", "", Standing.ABSENT),
        ("a", "-", Standing.ABSENT),
        ("a", "ab-", Standing.ABSENT),
        ("a", "a", Standing.EQUAL),
        ("cba", "a", Standing.EQUAL),
        ("ab", "a", Standing.BEHIND),
        ("abc", "ac", Standing.EQUAL),
        ("abcd", "ac", Standing.BEHIND),
        ("aba", "ab", Standing.BEHIND),  # the source went back, and the other side knows only the way there
        ("ab", "aba", Standing.AHEAD),
        ("a", "ab", Standing.AHEAD),
        ("a", "b", Standing.CONFLICT),
        ("ab", "ac", Standing.CONFLICT),
        ("ba", "ab", Standing.CONFLICT),
        ("xab", "ya", Standing.BEHIND),
        ("xa", "yab", Standing.AHEAD),
        ("a-b", "a", Standing.BEHIND),
        ("aab", "a", Standing.BEHIND),
        ("A", "a", Standing.BEHIND),  # the same model, told differently
        ("a", "A", Standing.BEHIND),
        ("a", "aA", Standing.AHEAD),
        ("aA", "a", Standing.BEHIND),
        ("aAb", "A", Standing.BEHIND),
    ],
)
def test_standing(src, dst, standing):
    assert compare(told(src), told(dst)) is standing


def test_never_both_sides_take_the_others_value_when_targets_differ():
    words = ["a", "b", "ab", "ba", "aba", "bab", "abc", "cab", "acb"]
    for one in words:
        for other in words:
            if one[-1] != other[-1]:
                pair = {compare(told(one), told(other)), compare(told(other), told(one))}
                assert pair in ({Standing.BEHIND, Standing.AHEAD}, {Standing.CONFLICT}), (one, other)
