"""Repairs of and from a store on a real server, and readers that find there what their own store has lost."""

from __future__ import annotations

import shutil

from fakes.stores import model_of, noise, read_model, write_model

from casstore import Store
from casstore.backend import open_backend
from casstore.machine.remotes import Remotes
from casstore.objects.keys import PACK_PREFIX
from casstore.store.reading.other_stores import OtherStores, Place

MODEL = model_of(weights=noise(1, 700_000), config=b"{}")


def test_both_ways(s3_server, tmp_path):
    url, options = f"s3://{s3_server.make_bucket()}/team/store", s3_server.options
    with Store(tmp_path / "own", create=True) as own, Store(url, create=True, **options) as hub:
        own.add(write_model(MODEL, tmp_path / "m"), ref="models/m")
        own.push(hub)
        for path in (tmp_path / "own/packs").rglob("*/*"):
            path.unlink()
        assert not own.repair(dry_run=False).ok
        report = own.repair(source=hub, dry_run=False)
        assert report.ok
        assert report.sources.keys() == {hub.backend.url}
        assert read_model(own, "models/m") == MODEL
        # And the other way round: the bucket lost its packs.
        for key in list(hub.backend.list_keys(PACK_PREFIX)):
            hub.backend.delete(key)
        assert hub.repair(source=own, dry_run=False).ok
    with Store(url, **options) as hub:
        assert read_model(hub, "models/m") == MODEL
        assert hub.check(read_data=True).ok


def test_readers_find_it_on_the_server(s3_server, tmp_path):
    url, options = f"s3://{s3_server.make_bucket()}/team/store", s3_server.options
    with Store(tmp_path / "own", create=True) as own, Store(url, create=True, **options) as hub:
        own.add(write_model(MODEL, tmp_path / "m"), ref="models/m")
        own.push(hub)
        Remotes(own.store_id).add("hub", url)
        shutil.rmtree(tmp_path / "own/packs")
    with Store(tmp_path / "own", read_only=True) as own:
        # A test server has its address in the options, which a name of a remote cannot hold.
        own._models._others._find = lambda: [Place("hub", lambda: Store(url, read_only=True, **options))]
        assert isinstance(own._models._others, OtherStores)
        assert read_model(own, "models/m") == MODEL
    with open_backend(tmp_path / "own") as backend:
        assert list(backend.list_keys(PACK_PREFIX)) == []
