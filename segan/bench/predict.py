"""`segan predict` beside a loop that takes one image after another."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from segan import storage
from segan.bench.measure import BenchReport, get_synchronize, interleave
from segan.bench.roofline import count_flops, measure_peak_flops
from segan.config import Config
from segan.data.archive.reader import read_image
from segan.data.synthetic import generate_archive
from segan.inference.masks import find_images, mask_name
from segan.inference.predictor import Predictor
from segan.networks.segmentor import build_segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE
from segan.runs.run import Run

PredictFunction = Callable[[str, str, str], object]


def write_untrained_checkpoint(folder: str, config: Config, size: tuple[int, int]) -> str:
    """The URI of a checkpoint whose weights nobody has trained: as fast as any.

    Args:
        size: (width, height) of its frames, pixels.
    """
    info = {
        "epochs": 0,
        "samples": 0,
        "metrics": {"jaccard": 0.0, "threshold": config.evaluation.threshold},
        "fingerprint": "none",
        "frame": {"width": size[0], "height": size[1]},
        "config": config.model_dump(mode="json"),
    }
    weights = save(build_segmentor(config.network).state_dict())
    return (
        Run(str(Path(folder) / "run"))
        .save_checkpoint("epoch_00000", {SEGMENTOR_FILE: weights}, info)
        .uri
    )


def bench_predict(
    model: str,
    images: str,
    predict: PredictFunction,
    device: torch.device,
    repeats: int,
    on_progress: Callable[[str], object] = lambda line: None,
) -> BenchReport:
    """Times the way from image files to mask files, at the images' own sizes.

    The floor is the operations of the segmentors over the rate of a large product.

    Args:
        model: URI of a run, a checkpoint or an ensemble.
        images: URI of a folder of images.
        predict: what `segan predict` does, of (model, images, out).
        device: that the predictor takes.
    """
    predictor, found = Predictor.load(model), find_images(images)
    width, height = predictor.frame_size
    frame = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    needed = count_flops(lambda: predictor(frame)) * len(found)
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:

        def one_by_one() -> None:
            for image in found:
                mask = predictor(read_image(image)).mask
                written = Image.fromarray(mask.astype(np.uint8) * 255)
                written.save(Path(folder) / mask_name(image))

        ways = {
            "sequential": one_by_one,
            "segan predict": lambda: predict(model, images, folder),
        }
        taken = interleave(ways, repeats, get_synchronize(device), on_progress)
    rate = measure_peak_flops(device, torch.float32)
    return BenchReport(
        f"masks of {len(found)} images by {len(predictor.members)} segmentors, on {device.type}"
        f" with {torch.get_num_threads()} threads",
        f"{needed / len(found) / 1e9:.4g} GFLOP an image over {rate / 1e12:.3g} TFLOP/s, "
        "reading and writing free",
        tuple(one.to_timing(name, len(found), needed / rate) for name, one in taken.items()),
    )


def write_synthetic_images(folder: str, count: int, short_side: int) -> str:
    """The URI of a folder of drawn images."""
    uri = str(Path(folder) / "drawn")

    def write(name: str, content: bytes) -> None:
        if name.endswith(".jpg"):
            storage.write_bytes(storage.join(uri, storage.basename(name)), content)

    generate_archive({"test": count}, 0, write, short_side)
    return uri
