"""Resources that several threads or processes want are fetched once, and whole."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from casstore.cache.olive.resources import Resources


class Remote:
    """A resource elsewhere, of `files` files."""

    def __init__(self, files=1, error=None):
        self.fetched, self.files, self.error = 0, files, error

    def is_local_resource_or_string_name(self):
        return False

    def to_json(self):
        return {"type": "elsewhere", "config": {"name": "weights"}}

    def save_to_dir(self, folder):
        self.fetched += 1
        assert not list(Path(folder).iterdir())
        for number in range(self.files):
            (Path(folder) / f"part-{number}").write_bytes(b"%d" % number)
            time.sleep(0.01)
        if self.error is not None:
            raise self.error
        return folder


def names(path):
    return sorted(item.name for item in Path(path).iterdir())


def test_threads_fetch_one_thing_once(tmp_path):
    resources, remote = Resources(tmp_path), Remote(2)
    with ThreadPoolExecutor(8) as pool:
        paths = set(pool.map(lambda _: resources.local_path(remote), range(8)))
    assert remote.fetched == 1
    [path] = paths
    assert names(path) == ["part-0", "part-1"]


@pytest.mark.parametrize("error", [ConnectionError(), KeyboardInterrupt()])
def test_what_a_failed_download_left_is_no_part_of_the_next_one(tmp_path, error):
    resources = Resources(tmp_path)
    with pytest.raises(type(error)):
        resources.local_path(Remote(4, error))
    assert names(tmp_path) == []
    assert names(resources.local_path(Remote(2))) == ["part-0", "part-1"]


def test_what_a_killed_process_left_goes(tmp_path):
    left = tmp_path / ".scratch.0123456789ab.casstore" / "new"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    Resources(tmp_path).local_path(Remote())
    assert not left.parent.exists()


def test_files_of_another_process_that_was_faster_stay_in_use(tmp_path):
    first, second = Resources(tmp_path), Resources(tmp_path)

    class Slow(Remote):
        def save_to_dir(self, folder):
            other = Path(first._download(Remote(2), self.to_json(), name))
            self.inode = (other / "part-0").stat().st_ino
            return super().save_to_dir(folder)

    slow = Slow(4)
    name = "weights"
    path = second._download(slow, slow.to_json(), name)
    assert names(path) == ["part-0", "part-1"]
    assert (Path(path) / "part-0").stat().st_ino == slow.inode
