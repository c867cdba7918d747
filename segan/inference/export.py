"""A model as one file that other programs load: ONNX, torch.export's .pt2, or safetensors.

    <out>/model.onnx | model.pt2 | model.safetensors
          model.json     what goes in and comes out, and what was checked
          README.md      the same for a person, with a program to start from

In ONNX and .pt2 an ensemble is one network: the mean of its members' maps, each with its own k, way
of putting a frame in, and flips. safetensors are weights alone, for `segan.networks.segmentor`.
"""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes

import segan
from segan import storage
from segan.data.synthetic import generate_pair
from segan.errors import SeganError, UsageError
from segan.inference.frames import mean_map, segment_images
from segan.inference.predictor import Predictor
from segan.networks.segmentor import MIN_SIDE

ExportFormat = Literal["onnx", "torch", "safetensors"]
MODEL_FILES: dict[ExportFormat, str] = {
    "onnx": "model.onnx",
    "torch": "model.pt2",
    "safetensors": "model.safetensors",
}
OPSET = 18
PROBABILITY_TOLERANCE = 1e-4  # of a probability, in float32
MASK_TOLERANCE = 1e-4  # share of a mask's pixels that may differ
INPUT_NAME, OUTPUT_NAME = "image", "probability"

InferenceFunction = Callable[[np.ndarray], np.ndarray]  # float32 [B, 3, H, W] to [B, classes, H, W]


class EnsembleModule(nn.Module):
    """All members as one network: float32 [B, 3, H, W] in [0, 1] to the mean of their maps."""

    def __init__(self, predictor: Predictor):
        super().__init__()
        self.members = nn.ModuleList(member.read().cpu() for member in predictor.members)
        self._configs = [member.config for member in predictor.members]
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        pairs = zip(self.members, self._configs, strict=True)
        return mean_map(segment_images(member, image, config) for member, config in pairs)  # type: ignore[arg-type]


def export(
    predictor: Predictor, out: str, kind: ExportFormat, tolerance: float = PROBABILITY_TOLERANCE
) -> dict[str, Any]:
    """Writes the model below `out` once it was loaded again and gave what the model itself gives.

    Args:
        tolerance: the greatest difference of a probability that passes.

    Returns:
        What model.json says.

    Raises:
        UsageError: what this format needs is not installed.
        SeganError: the file gives other maps than the model; nothing is written.
    """
    out = storage.normalise(out)
    storage.check_access(out)
    about = describe(predictor, kind)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL_FILES[kind]
        if kind == "safetensors":
            _write_weights(predictor, about, file)
            about["verification"] = _verify_weights(predictor, file)
        else:
            model = EnsembleModule(predictor)
            _export_program(model, predictor.frame_size, about, file)
            about["verification"] = verify_export(model, load_exported(file), predictor, tolerance)
        storage.write_bytes(storage.join(out, MODEL_FILES[kind]), file.read_bytes())
    storage.write_bytes(storage.join(out, "README.md"), _readme(about).encode())
    storage.write_json(storage.join(out, "model.json"), about)
    return about


def describe(predictor: Predictor, kind: ExportFormat) -> dict[str, Any]:
    """What a program must know to use the file, which carries it as metadata too."""
    width, height = predictor.frame_size
    return {
        "segan": segan.__version__,
        "file": MODEL_FILES[kind],
        "format": kind,
        "model": predictor.name,
        "members": [
            {
                "checkpoint": member.name,
                "sha256": member.sha256,
                "k": float(member.read().logistic.k),
                "threshold": member.threshold,
                "network": member.config.network.model_dump(mode="json"),
                "resize_mode": member.config.evaluation.resize_mode,
                "tta": member.config.evaluation.tta,
            }
            for member in predictor.members
        ],
        "frame": {"width": width, "height": height},
        "input": {
            "name": INPUT_NAME,
            "layout": "[batch, channel, height, width], channels red, green, blue",
            "dtype": "float32",
            "range": [0, 1],
            "min_side": MIN_SIDE,
        },
        "output": {
            "name": OUTPUT_NAME,
            "layout": "[batch, class, height, width], of the input's height and width",
            "dtype": "float32",
            "range": [0, 1],
        },
        "preprocessing": "upright RGB of 8 bits, resized to the frame bilinearly with antialiasing (as "
        "Pillow's BILINEAR does), divided by 255",
        "postprocessing": "resized to the image's size bilinearly without antialiasing, pixel centres at "
        "(i + 0.5) * scale - 0.5 and edges repeated; a pixel above the threshold is lesion",
        "threshold": predictor.threshold,
    }


def load_exported(file: Path) -> InferenceFunction:
    """An exported network as a function, by what its format needs and nothing of this project's."""
    if file.suffix == ".onnx":
        runtime = _import_optional("onnxruntime")
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {INPUT_NAME: x})[0]
    module = torch.export.load(str(file)).module()

    @torch.inference_mode()
    def run(x: np.ndarray) -> np.ndarray:
        result: np.ndarray = module(torch.from_numpy(x)).numpy()
        return result

    return run


@torch.inference_mode()
def verify_export(
    model: EnsembleModule, exported: InferenceFunction, predictor: Predictor, tolerance: float
) -> dict[str, Any]:
    """Compares the two on drawn images, one and several at once, at the frame's and other sizes.

    Raises:
        SeganError: a probability or too many pixels of the masks differ.
    """
    greatest, pixels, total, sizes = 0.0, 0, 0, []
    for images in _synthetic_batches(predictor.frame_size):
        mine, theirs = model(torch.from_numpy(images)).numpy(), exported(images)
        greatest = max(greatest, float(np.abs(mine - theirs).max()))
        pixels += int(((mine > predictor.threshold) != (theirs > predictor.threshold)).sum())
        total += mine.size
        sizes.append(list(images.shape))
    if not greatest <= tolerance or pixels > MASK_TOLERANCE * total:
        raise SeganError(
            f"{predictor.name}: the exported network's probabilities differ by {greatest:.2g} "
            f"from the model's, expected {tolerance:g} at most, and {pixels} of {total} pixels of "
            f"masks, expected {MASK_TOLERANCE * total:.0f} at most; nothing was written "
            "(--tolerance takes another bound)"
        )
    return {
        "input_shapes": sizes,
        "max_abs_difference": greatest,
        "tolerance": tolerance,
        "differing_pixels": pixels,
        "total_pixels": total,
    }


def _synthetic_batches(size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Batches of drawn images, float32 [B, 3, H, W] in [0, 1]."""
    width, height = size
    wanted = ((1, size), (3, size), (1, (height, width)), (2, (width + 77, height + 31)))
    for seed, (count, shape) in enumerate(wanted):
        images = np.stack([generate_pair(seed, index, shape)[0] for index in range(count)])
        yield np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255


def _export_program(
    model: EnsembleModule, size: tuple[int, int], metadata: dict[str, Any], file: Path
) -> None:
    example = torch.rand(2, 3, size[1], size[0])
    free = torch.export.Dim.DYNAMIC
    # Sizes of 1, as a batch of one's, are to be no case of their own.
    any_size = shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), any_size:
        program = torch.export.export(
            model, (example,), dynamic_shapes={INPUT_NAME: {0: free, 2: free, 3: free}}
        )
    if file.suffix == ".pt2":
        torch.export.save(program, str(file), extra_files={"model.json": json.dumps(metadata)})
        return
    _import_optional("onnxscript")
    onnx = _import_optional("onnx")
    # It warns of every operator of a package that nothing here uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    made = torch.onnx.export(
        program,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=OPSET,
        verbose=False,
    )
    assert made is not None, "the exporter of torch 2.9 and later gives a program"
    proto = made.model_proto  # made anew each time
    onnx.helper.set_model_props(proto, {key: _to_metadata(metadata[key]) for key in metadata})
    onnx.save(proto, str(file))


def _write_weights(predictor: Predictor, metadata: dict[str, Any], file: Path) -> None:
    from safetensors.torch import save_file

    weights = {
        f"{i}.{name}": value.contiguous()
        for i, member in enumerate(predictor.members, 1)
        for name, value in member.read().cpu().state_dict().items()
    }
    save_file(weights, file, {key: _to_metadata(metadata[key]) for key in metadata})


def _verify_weights(predictor: Predictor, file: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found = load_file(file)
    for i, member in enumerate(predictor.members, 1):
        for name, value in member.read().state_dict().items():
            if not torch.equal(found.pop(f"{i}.{name}"), value):
                raise SeganError(f"{predictor.name}: {i}.{name} is not what was written")
    assert not found, "no weights of anything else"
    return {"weights": "bitwise equal"}


def _to_metadata(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _import_optional(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UsageError(
            f"{package} is not installed, which --format onnx needs; pip install 'segan[export]'"
        ) from None


def _readme(metadata: dict[str, Any]) -> str:
    source = jinja2.PackageLoader("segan.inference", "")
    templates = jinja2.Environment(  # noqa: S701  (Markdown)
        loader=source, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return templates.get_template("export.md.j2").render(metadata)
