"""A local object store with S3's semantics, and nodes that share nothing else."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import boto3
import pytest

CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "key-of-tests",
    "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
    "AWS_DEFAULT_REGION": "us-east-1",
}

Node = Callable[[str], None]


def new_bucket(server: str) -> str:
    """The URI of a storage in a bucket that nobody else uses; the environment names the server."""
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    boto3.client("s3", endpoint_url=server).create_bucket(Bucket=name)
    return f"s3://{name}/runs"


def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Node:
    """Makes this process one of the node of some name, which has a mirror of its own."""

    def become(name: str) -> None:
        monkeypatch.setenv("ORCHESTRATOR_CACHE", str(tmp_path / "nodes" / name))

    return become
