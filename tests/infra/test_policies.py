"""The bucket's policies in infra/aws allow what the code calls, and the reading one only reads."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from infra.check_manifests import ROOT

# The IAM actions of boto3's methods, by AWS's reference of authorised actions.
ACTIONS = {
    "list_objects_v2": "s3:ListBucket",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "put_object": "s3:PutObject",
    "create_multipart_upload": "s3:PutObject",
    "upload_part": "s3:PutObject",
    "complete_multipart_upload": "s3:PutObject",
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "list_parts": "s3:ListMultipartUploadParts",
    "delete_object": "s3:DeleteObject",
    "delete_objects": "s3:DeleteObject",
}


def read_statements(name: str) -> dict[str, list[str]]:
    """The allowed actions by resource."""
    policy: dict[str, Any] = json.loads((ROOT / "infra/aws" / name).read_text())
    assert all(statement["Effect"] == "Allow" for statement in policy["Statement"])
    return {statement["Resource"]: statement["Action"] for statement in policy["Statement"]}


def test_a_training_may_call_what_the_code_calls() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "segan").rglob("*.py"))
    called = {*re.findall(r"(?:_client\(\)|\bclient)\.([a-z_0-9]+)", sources)}
    calls = {name for name in called if re.search(r"object|part|upload|bucket", name)}
    assert calls == {*ACTIONS}
    statements = read_statements("train-policy.json")
    assert statements["arn:aws:s3:::BUCKET"] == ["s3:ListBucket"]
    of_objects = {ACTIONS[name] for name in calls} - {"s3:ListBucket"}
    assert {*statements["arn:aws:s3:::BUCKET/*"]} == of_objects


@pytest.mark.parametrize(
    ("resource", "actions"), [("BUCKET", ["s3:ListBucket"]), ("BUCKET/*", ["s3:GetObject"])]
)
def test_reading_needs_two_actions(resource: str, actions: list[str]) -> None:
    assert read_statements("read-policy.json")[f"arn:aws:s3:::{resource}"] == actions
