"""Where Ray keeps its notes: any prefix of a bucket, and no credentials in what is pickled."""

from __future__ import annotations

import os
import pickle

import pytest

from ray_jobs.cluster.ray_storage import ray_storage
from segan import storage


@pytest.fixture(autouse=True)
def ray_connection() -> None:
    """No cluster is needed."""


@pytest.mark.integration
@pytest.mark.parametrize("prefix", ["my study", "ünï/日本", "a[b]", "q?x#y", "a%20b", "a+b:c@d"])
def test_a_prefix_in_a_bucket_is_taken_as_it_is(bucket: str, prefix: str) -> None:
    uri = f"{bucket}/{prefix}/ray"
    options = pickle.loads(pickle.dumps(ray_storage(uri)))
    path = f"{options['storage_path']}/notes.json"
    with options["storage_filesystem"].open_output_stream(path) as file:
        file.write(b"notes")
    assert storage.read_bytes(f"{uri}/notes.json") == b"notes"
    assert os.environ["AWS_SECRET_ACCESS_KEY"].encode() not in pickle.dumps(ray_storage(uri))


def test_a_local_folder_is_a_path() -> None:
    assert ray_storage("/runs/a%20b [c]") == {"storage_path": "/runs/a%20b [c]"}
