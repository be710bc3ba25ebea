"""A real S3 server on loopback: moto in a process of its own."""

from __future__ import annotations

import functools
import os
import sys
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import boto3
from botocore.loaders import JSONFileLoader
from servers.processes import free_port, running

KEY, SECRET = "testing", "not-a-real-secret"  # moto takes any


@dataclass(frozen=True)
class S3Server:
    port: int
    client: object = field(repr=False)

    @property
    def options(self):
        """What casstore needs to reach this server."""
        return self.options_at(self.port)

    def options_at(self, port):
        """The same through a proxy."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": f"http://127.0.0.1:{port}"}

    def make_bucket(self):
        name = f"bucket-{uuid.uuid4().hex}"
        self.client.create_bucket(Bucket=name)
        return name

    def drop_bucket(self, name):
        """Take a bucket away with all that is in it."""
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=name):
            for found in page.get("Contents", ()):
                self.client.delete_object(Bucket=name, Key=found["Key"])
        self.client.delete_bucket(Bucket=name)

    def unfinished_uploads(self, bucket):
        return [
            found["Key"] for found in self.client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
        ]


@contextmanager
def descriptions_read_once():
    """Let botocore read its large descriptions of services once, not for every store that a test opens."""
    read = functools.cache(JSONFileLoader().load_file)
    with patch.object(JSONFileLoader, "load_file", lambda _, path: read(path)):
        yield


@contextmanager
def s3_server(folder):
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    env["MOTO_S3_DEFAULT_MAX_KEYS"] = "50"  # so that listings come in several pages
    with running(command, port=port, folder=folder, env=env), descriptions_read_once():
        client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        try:
            yield S3Server(port, client)
        finally:
            client.close()
