"""Lists of what processes use: there for as long as a process uses something, and gone with the last one."""

from __future__ import annotations

import os

import pytest

from casstore.machine.uses.processes import Uses


def lists_in(folder):
    return [path.name for path in folder.glob("*.uses")]


@pytest.fixture
def uses(tmp_path):
    made = Uses(tmp_path)
    with made.locked():
        made.claim("models/m")
    yield made
    made.close()


def test_nothing_is_left_of_what_was_closed(uses, tmp_path):
    assert len(lists_in(tmp_path)) == 1
    uses.close()
    assert lists_in(tmp_path) == []
    with uses.locked():
        uses.claim("models/again")
    assert Uses(tmp_path).used() == {"models/again"}
    uses.close()
    uses.close()
    assert lists_in(tmp_path) == []
    assert Uses(tmp_path).used() == set()


def test_a_list_that_was_given_up_in_part_goes_too(uses, tmp_path):
    with uses.locked():
        uses.release({"models/m"})
    uses.close()
    assert lists_in(tmp_path) == []


def test_a_child_that_closes_takes_nothing_from_its_parent(uses, tmp_path):
    pid = os.fork()
    if pid == 0:
        uses.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert Uses(tmp_path).used() == {"models/m"}


def test_what_a_child_uses_outlives_its_parents_close(uses, tmp_path):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writer)
        os.read(reader, 1)
        os._exit(0)
    os.close(reader)
    uses.close()
    assert Uses(tmp_path).used() == {"models/m"}
    os.close(writer)
    os.waitpid(pid, 0)
    assert Uses(tmp_path).used() == set()
    assert lists_in(tmp_path) == []
