"""Which side of a ref is newer, by what its records say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from casstore.format.record import Record
from casstore.ops.sync.ref_state import RefState, compare


def told(text):
    """Return the records that a word tells: a letter is a target, upper case with other metadata, - a deletion."""
    return [
        Record(
            name="models/x",
            seq=at + 1,
            write_id=f"{text:<12}{at:04}".encode(),
            time=at,
            writer=f"writer of {text}",
            target=None if letter == "-" else letter.lower().encode() * 32,
            manifest=None if letter == "-" else b"m" * 32,
            metadata={"note": "other"} if letter.isupper() else {},
        )
        for at, letter in enumerate(text)
    ]


@pytest.mark.parametrize(
    ("src", "dst", "state"),
    [
        ("a", "", RefState.ABSENT),
        ("a", "-", RefState.ABSENT),
        ("a", "ab-", RefState.ABSENT),
        ("a", "a", RefState.EQUAL),
        ("cba", "a", RefState.EQUAL),
        ("ab", "a", RefState.BEHIND),
        ("abc", "ac", RefState.EQUAL),
        ("abcd", "ac", RefState.BEHIND),
        ("aba", "ab", RefState.BEHIND),  # the source went back, and the other side knows only the way there
        ("ab", "aba", RefState.AHEAD),
        ("a", "ab", RefState.AHEAD),
        ("a", "b", RefState.CONFLICT),
        ("ab", "ac", RefState.CONFLICT),
        ("ba", "ab", RefState.CONFLICT),
        ("xab", "ya", RefState.BEHIND),
        ("xa", "yab", RefState.AHEAD),
        ("a-b", "a", RefState.BEHIND),
        ("aab", "a", RefState.BEHIND),
        ("A", "a", RefState.BEHIND),  # the same model, told differently
        ("a", "A", RefState.BEHIND),
        ("a", "aA", RefState.AHEAD),
        ("aA", "a", RefState.BEHIND),
        ("aAb", "A", RefState.BEHIND),
    ],
)
def test_what_a_ref_is_here_compared_with_there(src, dst, state):
    assert compare(told(src), told(dst)) is state


def copied(record, seq):
    """Return a record as sync writes it: by another writer, with the write that it comes from."""
    return replace(record, seq=seq, write_id=bytes([seq]) * 16, origin=record.origin or record.write_id)


def test_who_went_back_is_told_by_the_writes():
    """By their values alone, each side has had what the other one says now."""
    there = told("ab")
    here = [copied(there[-1], 1), replace(told("xa")[-1], seq=2)]
    assert compare(here, there) is RefState.BEHIND
    assert compare(there, here) is RefState.AHEAD


def test_a_write_is_known_again_after_several_copies():
    first = told("ab")
    second = [copied(first[-1], 1)]
    third = [copied(second[-1], 1), replace(told("xyc")[-1], seq=2)]
    assert compare(third, first) is RefState.BEHIND
    assert compare(first, third) is RefState.AHEAD


def test_never_both_sides_take_the_others_value_when_targets_differ():
    words = ["a", "b", "ab", "ba", "aba", "bab", "abc", "cab", "acb"]
    for one in words:
        for other in words:
            if one[-1] != other[-1]:
                pair = {compare(told(one), told(other)), compare(told(other), told(one))}
                assert pair in ({RefState.BEHIND, RefState.AHEAD}, {RefState.CONFLICT}), (one, other)
