"""What a program imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

import segan
from segan.inference import predictor


def test_the_package_gives_the_predictor() -> None:
    from segan import Prediction, Predictor

    assert (Prediction, Predictor) == (predictor.Prediction, predictor.Predictor)
    assert {"Prediction", "Predictor"} <= set(segan.__all__)


def test_the_package_alone_is_light() -> None:
    program = (
        "import sys, segan\n"
        "assert 'torch' not in sys.modules\n"
        "segan.Predictor\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_what_it_does_not_have_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'segan' has no attribute 'Predicter'"):
        segan.Predicter  # noqa: B018
