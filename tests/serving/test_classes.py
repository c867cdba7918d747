"""The HTTP API of a model with several classes: each request is about one of them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import requests
from PIL import Image

from segan.inference.predictor import Predictor
from tests.inference.models import FRAME, untrained_predictor
from tests.serving.test_web import decode_mask, running_app

LABELS, THRESHOLDS = ("streaks", "globules"), (0.4, 0.6)
predictor = Predictor(
    untrained_predictor((0, 1), LABELS).members, FRAME, THRESHOLDS, "two classes", LABELS
)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_app("", model=predictor) as found:
        yield found


def test_the_model_lists_its_classes(address: str, session: requests.Session) -> None:
    found = session.get(f"{address}/v1/model").json()
    assert found["threshold"] is None
    assert found["classes"] == [
        {"name": name, "threshold": threshold}
        for name, threshold in zip(LABELS, THRESHOLDS, strict=True)
    ]


@pytest.mark.parametrize("name", LABELS)
def test_each_class_has_its_own_mask(
    name: str,
    address: str,
    session: requests.Session,
    image: Image.Image,
    content: bytes,
) -> None:
    found = session.post(f"{address}/v1/segment", content, params={"class": name})
    expected = predictor(image)[name].mask
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(decode_mask(found), expected * np.uint8(255))
    summary = session.post(
        f"{address}/v1/segment", content, params={"class": name, "format": "json"}
    ).json()
    view = session.post(f"{address}/v1/view", content, params={"class": name}).json()
    threshold = dict(zip(LABELS, THRESHOLDS, strict=True))[name]
    for body in (summary, view):
        assert (body["area"], body["threshold"]) == (expected.sum(), threshold)


@pytest.mark.parametrize(
    ("parameters", "shown"),
    [({}, "none"), ({"class": "lesion"}, "'lesion'"), ({"class": ""}, "''")],
)
@pytest.mark.parametrize("path", ["segment", "view"])
def test_an_unknown_class_is_one_line(
    path: str,
    parameters: dict[str, str],
    shown: str,
    address: str,
    session: requests.Session,
    content: bytes,
) -> None:
    found = session.post(f"{address}/v1/{path}", content, params=parameters)
    assert (found.status_code, found.json()) == (
        422,
        {"detail": f"class: expected one of streaks, globules, found {shown}"},
    )
