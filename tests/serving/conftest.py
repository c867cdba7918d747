"""An image, and a session that sends it."""

from __future__ import annotations

import io

import numpy as np
import pytest
import requests
from PIL import Image


@pytest.fixture
def session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False  # no proxy from the environment
    return session


@pytest.fixture(scope="module")
def image() -> Image.Image:
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (75, 131, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def content(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()
