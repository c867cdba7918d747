"""Models as MONAI bundles, which MONAI's own command runs without this package.

<out>/configs/metadata.json, inference.json
      models/model.pt2      images of any size in, maps of the same size out (`torch.export`)
      docs/README.md

python -m monai.bundle run --config_file configs/inference.json --bundle_root .
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segan.utils.labels import LESION

NETWORK_FILE = "models/model.pt2"
MONAI_VERSION = "1.5.0"  # that the configuration was written for
# MONAI's `imports` do not import a module of a package.
_UPRIGHT_RGB = (
    "$lambda image: __import__('PIL.ImageOps').ImageOps.exif_transpose(image).convert('RGB')"
)
# MONAI's reader turns an image's axes to [width, height]; the network has [height, width].
_TRANSPOSE = {"_target_": "Lambdad", "func": "$lambda x: x.transpose(-2, -1)"}


class WholeImageModule(nn.Module):
    """A model with its pre- and postprocessing: images [B, 3, H, W] in [0, 1] of any size.

    The image is resized to the frame in 8 bits, as Pillow does, so that the frame is that of
    `Predictor` but for a rounding of some values.
    """

    def __init__(self, network: nn.Module, frame_size: tuple[int, int]):
        """
        Args:
            network: from frames [B, 3, h, w] in [0, 1] to maps [B, classes, h, w].
            frame_size: (width, height).
        """
        super().__init__()
        self.network, self.frame_size = network, frame_size

    def forward(self, image: Tensor) -> Tensor:
        """Maps [B, classes, H, W] in [0, 1], at the images' size."""
        width, height = self.frame_size
        pixels = (image * 255).round().to(torch.uint8)
        frame = F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)
        maps: Tensor = self.network(frame.float() / 255)
        return F.interpolate(maps, image.shape[2:], mode="bilinear", align_corners=False)


def export_network(module: WholeImageModule) -> torch.export.ExportedProgram:
    """The network as a program for images of any size, one at a time."""
    width, height = module.frame_size
    example = torch.rand(1, 3, 2 * height, 2 * width + 1)
    sides = {2: torch.export.Dim("height", min=16), 3: torch.export.Dim("width", min=16)}
    with torch.no_grad():
        return torch.export.export(module.eval(), (example,), dynamic_shapes={"image": sides})


def make_configs(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The bundle's configuration files.

    Args:
        metadata: from `segan.inference.export.describe`.
    """
    configs = {
        "configs/metadata.json": _make_metadata(metadata),
        "configs/inference.json": _make_inference(
            metadata.get("class_thresholds", metadata["threshold"]),
            metadata.get("class_names", ()),
        ),
    }
    return {name: json.dumps(content, indent=2).encode() for name, content in configs.items()}


def _make_inference(
    threshold: float | Sequence[float], class_names: Sequence[str]
) -> dict[str, Any]:
    """Plain expressions, since MONAI's evaluator cannot hold an exported program.

    Args:
        threshold: of the lesion, or of each of several classes.
        class_names: of several classes.
    """
    above = "torch.tensor(@threshold)[:, None, None]" if class_names else "@threshold"
    saving = _save_classes(class_names) if class_names else [_save("pred", "@output_dir")]
    return {
        "imports": [
            "$import glob",
            "$import torch",
            "$from monai.data import MetaTensor",
        ],
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/masks'",
        "threshold": threshold,
        "datalist": "$[{'image': f} for f in sorted(glob.glob(@dataset_dir + '/*.*'))]",
        "network": f"$torch.export.load(@bundle_root + '/{NETWORK_FILE}').module()",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "LoadImaged",
                    "keys": "image",
                    "ensure_channel_first": True,
                    "reader": "PILReader",
                    "converter": _UPRIGHT_RGB,
                },
                {**_TRANSPOSE, "keys": "image"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "forward": "$lambda image: "
        "@network(image.as_tensor().contiguous()[None] / 255)[0].detach()",
        "predict": "$lambda item: {'pred': MetaTensor("
        "(@forward)(item['image']), meta=item['image'].meta)}",
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {
                    "_target_": "Lambdad",
                    "keys": "pred",
                    "func": f"$lambda x: (x > {above}).to(torch.float32)",
                },
                {**_TRANSPOSE, "keys": "pred"},
                *saving,
            ],
        },
        "run": ["$[@postprocessing((@predict)(item)) for item in @dataset]"],
    }


def _save(key: str, folder: str) -> dict[str, Any]:
    return {
        "_target_": "SaveImaged",
        "keys": key,
        "output_dir": folder,
        "output_postfix": "segmentation",
        "output_ext": ".png",
        "separate_folder": False,
        "scale": 255,
    }


def _save_classes(names: Sequence[str]) -> list[dict[str, Any]]:
    """A file for each class, in a folder of its name, as `segan predict` writes them."""
    split = {"_target_": "SplitDimd", "keys": "pred", "output_postfixes": [*names]}
    return [split, *(_save(f"pred_{name}", f"$@output_dir + '/{name}'") for name in names)]


def _make_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    def describe(kind: str, channels: Mapping[str, str]) -> dict[str, Any]:
        return {
            "type": kind,
            "format": "RGB" if kind == "image" else "probability",
            "modality": "dermoscopy",
            "num_channels": len(channels),
            "spatial_shape": ["*", "*"],
            "dtype": "float32",
            "value_range": [0, 1],
            "is_patch_data": False,
            "channel_def": dict(channels),
        }

    channels = metadata.get("id2label", {"0": LESION})
    return {
        "version": metadata["segan"],
        "monai_version": MONAI_VERSION,
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": np.__version__,
        "required_packages_version": {"pillow": PIL.__version__},
        "name": "SegAN skin lesion segmentation",
        "task": "Segmentation of skin lesions in dermoscopy images",
        "description": "Segmentors trained by SegAN (Xue, Xu, Huang, ISBI 2018)",
        "intended_use": "Research software and no medical device; not for diagnosis or treatment",
        "changelog": {metadata["segan"]: "exported"},
        "segan": dict(metadata),
        "network_data_format": {
            "inputs": {"image": describe("image", {"0": "red", "1": "green", "2": "blue"})},
            "outputs": {"pred": describe("probabilities", channels)},
        },
    }
