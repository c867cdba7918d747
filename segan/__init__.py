"""SegAN: adversarial segmentation with a multi-scale L1 loss (Xue, Xu, Huang, ISBI 2018)."""

__version__ = "0.1.0"
