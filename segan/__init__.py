"""SegAN: adversarial segmentation with a multi-scale L1 loss (Xue, Xu, Huang, ISBI 2018).

from segan import Predictor

prediction = Predictor.load("s3://bucket/runs/first")(image)
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from segan.inference.predictor import Prediction, Predictor

# Torch's threads wait for each other by spinning, which beside any other process costs two to five
# times the whole step. OpenMP reads this when torch is imported; Ray's processes inherit it.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
__all__ = ["Prediction", "Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports Predictor and Prediction on first use, since they import torch, which is slow.

    Commands that only read storage do not need it.
    """
    if name in ("Prediction", "Predictor"):
        from segan.inference import predictor

        return getattr(predictor, name)
    raise AttributeError(f"module 'segan' has no attribute {name!r}")
