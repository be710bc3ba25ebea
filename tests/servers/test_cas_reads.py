"""cas:// on a real S3 server: how many bytes travel for a read, counted between the two."""

from __future__ import annotations

import fsspec
import numpy as np
import pytest
from fakes.stores import model_of, noise, write_model
from safetensors.numpy import save
from servers.proxy import proxied

from casstore.api.store import Store
from casstore.errors import IntegrityError

MB = 1 << 20
random = np.random.default_rng(11)
TENSORS = {f"layer{at}": random.integers(0, 256, (4, MB), np.uint8) for at in range(6)}
WEIGHTS = save(TENSORS)
BEGIN = WEIGHTS.index(TENSORS["layer4"][0, :1000].tobytes())
PATH = "cas://models/m/model.safetensors"


@pytest.fixture
def place(s3_server, tmp_path, monkeypatch):
    """Return the URL and options of a store with one model, reached through a proxy that counts."""
    url = f"s3://{s3_server.make_bucket()}/team/store"
    folder = write_model(model_of(config_json=b"{}", x=noise(1, 1000)), tmp_path / "model")
    with open(f"{folder}/model.safetensors", "wb") as file:
        file.write(WEIGHTS)
    with Store(url, create=True, **s3_server.options) as store:
        store.add(folder, ref="models/m")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    with proxied(s3_server.port) as between:
        yield url, s3_server.options_at(int(between.url.rsplit(":", 1)[1])), between


def test_a_tensor_through_the_file_system(place):
    url, options, between = place
    fs = fsspec.filesystem("cas", store=url, store_options=options, skip_instance_cache=True)
    assert options["secret"] not in repr(fs)
    assert fs.ls("cas://models/m", detail=False) == [
        f"models/m/{name}" for name in ("config_json", "model.safetensors", "x")
    ]
    size = TENSORS["layer4"].nbytes
    between.answers.clear()
    with fs.open(PATH) as file:
        file.seek(BEGIN)
        assert file.read(size) == TENSORS["layer4"].tobytes()
    got = taken(between)
    assert size <= sum(got) <= 1.02 * size
    assert len(got) <= 4
    with fs.open(PATH) as file:
        file.seek(BEGIN + 100)
        assert file.read(size // 2) == WEIGHTS[BEGIN + 100 :][: size // 2]
    assert fs.cat_file(PATH, BEGIN, BEGIN + size) == TENSORS["layer4"].tobytes()
    assert taken(between) == []
    fs.close()


def test_a_whole_file_in_order_costs_its_size_once(place):
    url, options, between = place
    with fsspec.open(f"cas://models/m/model.safetensors::{url}", s3=options) as file:
        between.answers.clear()
        whole = b"".join(iter(lambda: file.read(1 << 17), b""))
    assert whole == WEIGHTS
    got = taken(between)
    assert len(WEIGHTS) <= sum(got) <= 1.02 * len(WEIGHTS)
    assert len(got) <= len(WEIGHTS) // MB


def taken(between):
    """Return the bytes that each read of a pack brought since the last call."""
    answers, between.answers[:] = list(between.answers), []
    return [answer.size for answer in answers if answer.method == "GET" and "/packs/" in answer.path]


def test_wrong_bytes_on_the_server_never_arrive(place, s3_server):
    url, options, _ = place
    bucket = url.split("/")[2]
    stored = TENSORS["layer4"][0, :1000].tobytes()
    damaged = 0
    for found in s3_server.client.list_objects_v2(Bucket=bucket)["Contents"]:
        if "/packs/" in found["Key"]:
            data = bytearray(s3_server.client.get_object(Bucket=bucket, Key=found["Key"])["Body"].read())
            if stored in data:
                data[data.index(stored) + 500] ^= 4
                s3_server.client.put_object(Bucket=bucket, Key=found["Key"], Body=bytes(data))
                damaged += 1
    assert damaged == 1
    fs = fsspec.filesystem("cas", store=url, store_options=options, skip_instance_cache=True)
    with pytest.raises(IntegrityError) as caught:
        fs.cat_file(PATH)
    assert options["secret"] not in str(caught.value)
    assert fs.cat_file(PATH, 0, MB) == WEIGHTS[:MB]
    fs.close()
