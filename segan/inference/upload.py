"""Decodes an uploaded image as a frame; imports no torch, for small processes that can be ended."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

from segan.data.archive.images import decode_image

MAX_PREVIEW_SIDE = 1600  # longer side of the preview, pixels


def decode_upload(
    name: str, content: bytes, frame_size: tuple[int, int], with_preview: bool
) -> tuple[np.ndarray, tuple[int, int], str]:
    """The model's input, the image's (width, height), and the preview or "".

    Args:
        frame_size: (width, height) of the model's frames.

    Raises:
        RejectedError: the content is not a usable image.
    """
    image = decode_image(name, content)
    preview = encode_preview(image) if with_preview else ""
    return resize_to_frame(image, frame_size), image.size, preview


def resize_to_frame(image: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The image in RGB as a frame of (width, height), uint8 [H, W, 3]: bilinear, antialiased."""
    return np.array(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))


def encode_preview(image: Image.Image) -> str:
    """The image scaled down to at most MAX_PREVIEW_SIDE pixels, as base64 of a JPEG."""
    small, sink = image.copy(), io.BytesIO()
    small.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE), Image.Resampling.BILINEAR)
    small.save(sink, "JPEG", quality=90)
    return base64.b64encode(sink.getvalue()).decode()
