"""Benchmark of `segan predict`, against a loop over single images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from segan.bench.measure import BenchReport, get_synchronize, interleave
from segan.bench.roofline import count_flops, measure_peak_flops
from segan.config import Config
from segan.data.archive.reader import read_image
from segan.inference.masks import encode_mask, find_images, mask_name
from segan.inference.predictor import Predictor
from segan.networks.segmentor import build_segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE, CheckpointInfo
from segan.runs.run import Run

PredictFunction = Callable[[str, str, str], object]


def write_untrained_checkpoint(folder: str, config: Config, size: tuple[int, int]) -> str:
    """Writes a checkpoint with untrained weights, which is as fast as a trained one; its URI.

    Args:
        size: (width, height) of its frames, pixels.
    """
    info = CheckpointInfo(
        epochs=0,
        samples=0,
        metrics={"jaccard": 0.0, "threshold": config.evaluation.threshold},
        fingerprint="none",
        frame={"width": size[0], "height": size[1]},
        config=config.model_dump(mode="json"),
    )
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
    on_progress: Callable[[str], object] = lambda message: None,
) -> BenchReport:
    """Times segmentation from image files to mask files, at the images' sizes.

    The roofline is the segmentors' FLOPs over the FLOP/s of a large matrix product or convolution.

    Args:
        model: URI of a run, a checkpoint or an ensemble.
        images: URI of a folder of images.
        predict: runs `segan predict` on (model, images, out).
        device: used by the predictor.
    """
    predictor, uris = Predictor.load(model), find_images(images)
    width, height = predictor.frame_size
    frame = Image.fromarray(np.zeros((height, width, 3), np.uint8))
    flops = count_flops(lambda: predictor(frame)) * len(uris)
    with tempfile.TemporaryDirectory(prefix="segan-bench-") as folder:

        def predict_sequentially() -> None:
            for uri in uris:
                for label, one in predictor(read_image(uri)).by_class().items():
                    Path(folder, f"{label}-{mask_name(uri)}").write_bytes(encode_mask(one.mask))

        variants = {
            "sequential": predict_sequentially,
            "segan predict": lambda: predict(model, images, folder),
        }
        times = interleave(variants, repeats, get_synchronize(device), on_progress)
    rate = measure_peak_flops(device, torch.float32)
    return BenchReport(
        f"masks of {len(uris)} images by {len(predictor.members)} segmentors, on {device.type}"
        f" with {torch.get_num_threads()} threads",
        f"{flops / len(uris) / 1e9:.4g} GFLOP per image at {rate / 1e12:.3g} TFLOP/s, without "
        "reading and writing",
        tuple(t.to_timing(name, len(uris), flops / rate) for name, t in times.items()),
    )
