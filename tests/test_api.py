"""The public Python API."""

from __future__ import annotations

import subprocess
import sys

import pytest

import segan
from segan.inference import predictor


def test_the_package_exports_the_predictor() -> None:
    from segan import Prediction, Predictor

    assert (Prediction, Predictor) == (predictor.Prediction, predictor.Predictor)
    assert {"Prediction", "Predictor"} <= set(segan.__all__)


def test_importing_the_package_imports_no_torch() -> None:
    program = (
        "import sys, segan\n"
        "assert 'torch' not in sys.modules\n"
        "segan.Predictor\n"
        "assert 'torch' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'segan' has no attribute 'Predicter'"):
        segan.Predicter  # noqa: B018
