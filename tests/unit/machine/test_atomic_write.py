from __future__ import annotations

import os

import pytest

from casstore.machine.atomic_write import atomic_write


def test_it_replaces_as_a_whole(tmp_path):
    path = tmp_path / "name"
    path.write_bytes(b"old")
    with atomic_write(path, durable=True) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["name"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "name"
    path.write_bytes(b"old")

    def interrupted():
        with atomic_write(path) as file:
            file.write(b"ne")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["name"]


def test_a_folder_in_the_way_leaves_nothing(tmp_path):
    (tmp_path / "name/inside").mkdir(parents=True)
    with pytest.raises(OSError, match="name"), atomic_write(tmp_path / "name") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["name"]


def test_modes_obey_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        for mode, found in ((0o666, 0o640), (0o777, 0o750)):
            with atomic_write(tmp_path / "name", mode=mode):
                pass
            assert (tmp_path / "name").stat().st_mode & 0o777 == found
    finally:
        os.umask(before)
