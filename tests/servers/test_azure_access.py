"""Azure by a token for one container, as a team hands it out, instead of the account's key."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from servers.azure import ACCOUNT, KEY

from casstore import Store
from casstore.backend import open_backend
from casstore.errors import AccessDenied, ConfigError

OBJECT = "packs/ab/cd"


@pytest.fixture
def opened(azure_server):
    container = azure_server.make_container()

    def opened(permissions, *, read_only=False, lifetime=1.0, **options):
        token = generate_container_sas(
            ACCOUNT,
            container,
            account_key=KEY,
            permission=ContainerSasPermissions.from_string(permissions),
            expiry=datetime.now(timezone.utc) + timedelta(hours=lifetime),
        )
        endpoint = f"BlobEndpoint=http://127.0.0.1:{azure_server.port}/{ACCOUNT};"
        connection = f"{endpoint}SharedAccessSignature={token}"
        return open_backend(
            f"az://{container}/store", read_only=read_only, connection_string=connection, **options
        )

    return opened


def test_a_token_for_one_container_is_enough(opened):
    with opened("rwdl") as backend:
        assert backend.creates_exclusively
        backend.put(OBJECT, [b"x"])
        assert backend.read(OBJECT) == b"x"
        assert [entry.key for entry in backend.list("")] == [OBJECT]
        assert list(backend.list("refs/")) == []
        backend.delete(OBJECT)
        assert list(backend.list("")) == []


def test_a_token_for_reading_reads(opened):
    with opened("rwdl") as backend:
        backend.put(OBJECT, [b"x"])
    with opened("rl", read_only=True) as backend:
        assert backend.read(OBJECT) == b"x"
        assert list(backend.list("refs/")) == []
    with opened("rl") as backend, pytest.raises(AccessDenied) as caught:
        backend.put("packs/ab/other", [b"y"])
    assert "sig=" not in str(caught.value).replace("sig=…", "")


def test_a_token_that_ran_out_is_refused(opened):
    with pytest.raises(AccessDenied, match="credentials"):
        opened("rwdl", lifetime=-1.0)


def test_a_wrong_key_is_refused_and_not_shown(azure_server):
    wrong = azure_server.options["connection_string"].replace("AccountKey=Eby8", "AccountKey=Aaaa")
    with pytest.raises(AccessDenied) as caught:
        Store(f"az://{azure_server.make_container()}/store", connection_string=wrong)
    assert "Aaaa" not in str(caught.value)


def test_no_credentials_at_all():
    with pytest.raises(ConfigError, match="account_name"):
        open_backend("az://container/store")
