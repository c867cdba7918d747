"""The section `augment`: how training images are changed at random."""

from __future__ import annotations

from pydantic import Field

from segan.config.base import FrozenConfig
from segan.utils.models import MAX_FRAME_SIDE


class AugmentConfig(FrozenConfig):
    crop: int = Field(
        128, ge=64, le=MAX_FRAME_SIDE, description="Side of the random square crop, in pixels (P)."
    )
    resize_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability of resizing the whole frame to the crop size instead of cropping "
        "(C has 0.5).",
    )
    flip_horizontal: float = Field(
        0.5, ge=0, le=1, description="Probability of a horizontal flip (P)."
    )
    flip_vertical: float = Field(0.5, ge=0, le=1, description="Probability of a vertical flip (P).")
    rotation: float = Field(
        0.0, ge=0, le=180, description="Random angle within +- this, in degrees (O)."
    )
    zoom: float = Field(
        1.0, ge=1, le=2, description="Random magnification between 1 / this and this (O)."
    )
    brightness: float = Field(
        0.4, ge=0, lt=1, description="Random factor within 1 +- this (P; strength C)."
    )
    contrast: float = Field(
        0.4, ge=0, lt=1, description="Random factor within 1 +- this (P; strength C)."
    )
    saturation: float = Field(
        0.4, ge=0, lt=1, description="Random factor within 1 +- this (P; strength C)."
    )
    hue: float = Field(
        0.1,
        ge=0,
        le=0.5,
        description="Random shift within +- this part of the hue circle (P; strength C).",
    )
