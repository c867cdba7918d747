"""Images for HTML pages."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image


def jpeg_data_uri(pixels: np.ndarray, **options: Any) -> str:
    """uint8 [H, W, 3] as a JPEG in a data URI; `options` are those of Pillow's JPEG writer."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", optimize=True, **options)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
