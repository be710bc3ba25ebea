"""A real S3 server on loopback: moto in a process of its own."""

from __future__ import annotations

import os
import sys
import uuid
from contextlib import contextmanager
from dataclasses import dataclass, field

import boto3
from servers.processes import free_port, running

KEY, SECRET = "testing", "not-a-real-secret"  # moto takes any


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    client: object = field(repr=False)

    @property
    def options(self):
        """What casstore needs to reach this server."""
        return {"key": KEY, "secret": SECRET, "endpoint_url": self.endpoint}

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
def s3_server(folder):
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    env = {**os.environ, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
    with running(command, port=port, folder=folder, env=env):
        endpoint = f"http://127.0.0.1:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )
        try:
            yield S3Server(endpoint, client)
        finally:
            client.close()
