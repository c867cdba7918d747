"""Exports a model for other programs: ONNX, torch.export's .pt2, safetensors, or the HF Hub.

    <out>/model.onnx | model.pt2 | model.safetensors
          model.json     inputs, outputs, pre- and post-processing, result of the verification
          README.md      the same for people, with an example program

A folder of the Hugging Face Hub is that of `segan.inference.huggingface`.

In ONNX and .pt2 an ensemble is one network that returns the mean of its members' maps, each with
its own k, resize mode and test-time augmentation. A safetensors file holds only weights, for
`segan.networks.segmentor`.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.fx.experimental import _config as shapes

import segan
from segan import storage
from segan.data.synthetic import generate_pair
from segan.errors import SeganError
from segan.inference import huggingface, monai_bundle
from segan.inference.frames import mean_map, segment_images
from segan.inference.predictor import Predictor
from segan.inference.thresholds import above_thresholds
from segan.networks.segmentor import MIN_SIDE
from segan.runs.ensemble import CARD_FILE, ENSEMBLE_FILE
from segan.runs.shipped import shipped_models
from segan.storage.lease import current_fence, hold_lease
from segan.utils.extras import require_extra
from segan.utils.html import render

ExportFormat = Literal["onnx", "torch", "safetensors", "huggingface", "monai-bundle"]
MODEL_FILES: dict[ExportFormat, str] = {
    "onnx": "model.onnx",
    "torch": "model.pt2",
    "safetensors": "model.safetensors",
    "huggingface": huggingface.WEIGHTS_FILE,
    "monai-bundle": monai_bundle.NETWORK_FILE,
}
OPSET = 18
PROBABILITY_TOLERANCE = 1e-4  # of a float32 probability
MASK_TOLERANCE = 1e-4  # fraction of the masks' pixels that may differ
INPUT_NAME, OUTPUT_NAME = "image", "probability"

InferenceFunction = Callable[[np.ndarray], np.ndarray]  # float32 [B, 3, H, W] to [B, classes, H, W]


class EnsembleModule(nn.Module):
    """All members as one network: from float32 [B, 3, H, W] in [0, 1] to their mean map."""

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
    """Exports the model, loads the file, verifies its output, and writes it below `out`.

    Args:
        tolerance: maximum difference of a probability.

    Returns:
        The content of model.json.

    Raises:
        UsageError: a package that the format needs is not installed, or another process writes
            below `out`.
        SeganError: the file's output differs from the model's; nothing is written.
    """
    with hold_lease(out):
        return _export(predictor, storage.normalise(out), kind, tolerance)


def _export(predictor: Predictor, out: str, kind: ExportFormat, tolerance: float) -> dict[str, Any]:
    metadata = describe(predictor, kind)
    if kind == "huggingface":
        return _export_to_hub(predictor, out, metadata)
    if kind == "monai-bundle":
        return _export_bundle(predictor, out, metadata, tolerance)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / MODEL_FILES[kind]
        if kind == "safetensors":
            _write_weights(predictor, metadata, file)
            metadata["verification"] = _verify_weights(predictor, file)
        else:
            model = EnsembleModule(predictor)
            _export_program(model, predictor.frame_size, metadata, file)
            metadata["verification"] = verify_export(
                model, load_exported(file), predictor, tolerance
            )
        current_fence(out)()
        storage.write_bytes(storage.join(out, MODEL_FILES[kind]), file.read_bytes())
    storage.write_bytes(
        storage.join(out, "README.md"), render("segan/inference/export.md.j2", **metadata).encode()
    )
    storage.write_json(storage.join(out, "model.json"), metadata)
    return metadata


def _export_to_hub(predictor: Predictor, out: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """Writes a folder of the Hugging Face Hub; see `segan.inference.huggingface`."""
    weights = huggingface.encode_weights(_numbered_weights(predictor))
    for entry, member in zip(metadata["members"], predictor.members, strict=True):
        entry["config"] = member.config.model_dump(mode="json", include=huggingface.SECTIONS)
    metadata |= {
        "model_type": huggingface.MODEL_TYPE,
        "architectures": ["Segmentor"],
        "weights": {"sha256": storage.sha256(weights), "size": len(weights)},
        "verification": {"weights": "bitwise equal"},
    }
    card = render(
        "segan/inference/huggingface.md.j2",
        title=storage.basename(predictor.name),
        card=_read_card(predictor),
        **metadata,
    )
    files = {
        huggingface.WEIGHTS_FILE: weights,
        "README.md": card.encode(),
        huggingface.CONFIG_FILE: json.dumps(metadata, indent=2).encode(),
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            Path(folder, name).write_bytes(content)
        _require_same_weights(predictor, Predictor.load(folder))
    current_fence(out)()
    for name, content in files.items():  # config.json, which makes it a model, is the last
        storage.write_bytes(storage.join(out, name), content)
    return metadata


def _export_bundle(
    predictor: Predictor, out: str, metadata: dict[str, Any], tolerance: float
) -> dict[str, Any]:
    """Writes a MONAI bundle; see `segan.inference.monai_bundle`."""
    network = monai_bundle.WholeImageModule(EnsembleModule(predictor), predictor.frame_size)
    program = monai_bundle.export_network(network)
    metadata["input"] |= {"layout": metadata["input"]["layout"] + "; a batch of one, of any size"}
    metadata["preprocessing"] = metadata["postprocessing"] = "part of the network"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.pt2"
        torch.export.save(program, str(file))
        metadata["verification"] = _verify_bundle(
            network, load_exported(file), predictor, tolerance
        )
        files = {
            monai_bundle.NETWORK_FILE: file.read_bytes(),
            "docs/README.md": render("segan/inference/monai_bundle.md.j2", **metadata).encode(),
            **monai_bundle.make_configs(metadata),
        }
    current_fence(out)()
    for name, content in files.items():
        storage.write_bytes(storage.join(out, name), content)
    return metadata


@torch.inference_mode()
def _verify_bundle(
    network: nn.Module, exported: InferenceFunction, predictor: Predictor, tolerance: float
) -> dict[str, Any]:
    """Compares the exported network with the network, and both with the predictor's masks.

    Only the first comparison has a bound: frames differ from Pillow's in the rounding of some
    values.
    """
    width, height = predictor.frame_size
    max_difference, differing, total = 0.0, 0, 0
    sizes = ((width, height), (3 * width + 1, 2 * height), (height, 2 * width))
    for seed, size in enumerate(sizes):
        pixels = generate_pair(seed, 0, size)[0]
        batch = np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]).astype(np.float32) / 255
        expected, found = network(torch.from_numpy(batch)).numpy(), exported(batch)
        max_difference = max(max_difference, float(np.abs(expected - found).max()))
        mask = predictor.predict(pixels).mask.reshape(found.shape[1:])
        differing += int((above_thresholds(found[0], predictor.thresholds) != mask).sum())
        total += mask.size
    if not max_difference <= tolerance:
        raise SeganError(
            f"{predictor.name}: the bundle's probabilities differ from the network's by "
            f"{max_difference:.2g} (expected at most {tolerance:g}); nothing was written; set "
            "another bound with --tolerance"
        )
    return {
        "max_abs_difference": max_difference,
        "tolerance": tolerance,
        "differing_pixels": differing,
        "total_pixels": total,
    }


def _read_card(predictor: Predictor) -> str:
    """The body of an ensemble's card; "" for other models."""
    uri = str(shipped_models().get(predictor.name, predictor.name))
    place = storage.join(uri, CARD_FILE)
    if not (storage.exists(storage.join(uri, ENSEMBLE_FILE)) and storage.exists(place)):
        return ""
    _, _, body = storage.read_bytes(place).decode().partition("\n## ")
    return f"## {body}".strip() if body else ""


def _require_same_weights(predictor: Predictor, written: Predictor) -> None:
    for i, pair in enumerate(zip(predictor.members, written.members, strict=True), 1):
        expected, found = (member.read().cpu().state_dict() for member in pair)
        for name, value in expected.items():
            if not torch.equal(found[name], value):
                raise SeganError(f"{predictor.name}: weight {i}.{name} differs in the export")


def describe(predictor: Predictor, kind: ExportFormat) -> dict[str, Any]:
    """The metadata that programs need to use the file; also stored in the file itself."""
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
                **_describe_thresholds(predictor.class_names, member.thresholds),
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
        "preprocessing": "upright 8-bit RGB, resized to the frame bilinearly with antialiasing (as "
        "Pillow's BILINEAR), divided by 255",
        "postprocessing": "resized to the image's size bilinearly without antialiasing, pixel "
        "centres at (i + 0.5) * scale - 0.5 and edges repeated; a pixel above the threshold is "
        + ("lesion" if len(predictor.class_names) == 1 else "of the class; classes may overlap"),
        **_describe_thresholds(predictor.class_names, predictor.thresholds),
        **_describe_classes(predictor.class_names),
    }


def _describe_thresholds(labels: Sequence[str], thresholds: Sequence[float]) -> dict[str, Any]:
    """`threshold`, that of the first class; of several classes, also `class_thresholds`."""
    described: dict[str, Any] = {"threshold": thresholds[0]}
    return described | ({"class_thresholds": [*thresholds]} if len(labels) > 1 else {})


def _describe_classes(labels: Sequence[str]) -> dict[str, Any]:
    """The names of several classes, in the order of the output's channels."""
    if len(labels) == 1:
        return {}
    return {"class_names": [*labels], "id2label": {str(i): name for i, name in enumerate(labels)}}


def load_exported(file: Path) -> InferenceFunction:
    """An exported network as a function, using only ONNX Runtime or torch."""
    if file.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
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
    """Compares the outputs on synthetic images, of several batch sizes and image sizes.

    Returns:
        The differences found.

    Raises:
        SeganError: a probability, or too many pixels of the masks, differ.
    """
    max_difference, differing, total, shapes_tested = 0.0, 0, 0, []
    for images in _synthetic_batches(predictor.frame_size):
        expected, found = model(torch.from_numpy(images)).numpy(), exported(images)
        max_difference = max(max_difference, float(np.abs(expected - found).max()))
        masks = [above_thresholds(maps, predictor.thresholds) for maps in (expected, found)]
        differing += int((masks[0] != masks[1]).sum())
        total += expected.size
        shapes_tested.append(list(images.shape))
    if not max_difference <= tolerance or differing > MASK_TOLERANCE * total:
        raise SeganError(
            f"{predictor.name}: the exported network's probabilities differ from the model's by "
            f"{max_difference:.2g} (expected at most {tolerance:g}), and {differing} of {total} "
            f"mask pixels differ (expected at most {MASK_TOLERANCE * total:.0f}); nothing was "
            "written; set another bound with --tolerance"
        )
    return {
        "input_shapes": shapes_tested,
        "max_abs_difference": max_difference,
        "tolerance": tolerance,
        "differing_pixels": differing,
        "total_pixels": total,
    }


def _synthetic_batches(size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Batches of synthetic images, float32 [B, 3, H, W] in [0, 1]."""
    width, height = size
    batches = ((1, size), (3, size), (1, (height, width)), (2, (width + 77, height + 31)))
    for seed, (count, shape) in enumerate(batches):
        images = np.stack([generate_pair(seed, index, shape)[0] for index in range(count)])
        yield np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(np.float32) / 255


def _export_program(
    model: EnsembleModule, size: tuple[int, int], metadata: dict[str, Any], file: Path
) -> None:
    if file.suffix == ".onnx":
        require_extra("--format onnx", "export")
    example = torch.rand(2, 3, size[1], size[0])
    dynamic = torch.export.Dim.DYNAMIC
    # Without specialisation on sizes of 1, so that a batch of one passes too.
    any_size = shapes.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), any_size:
        program = torch.export.export(
            model, (example,), dynamic_shapes={INPUT_NAME: {0: dynamic, 2: dynamic, 3: dynamic}}
        )
    if file.suffix == ".pt2":
        torch.export.save(program, str(file), extra_files={"model.json": json.dumps(metadata)})
        return
    import onnx

    # It warns about each operator of torchvision, which is not used here.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    onnx_program = torch.onnx.export(
        program,
        input_names=[INPUT_NAME],
        output_names=[OUTPUT_NAME],
        opset_version=OPSET,
        verbose=False,
    )
    assert onnx_program is not None  # None only of the exporter before torch 2.9
    proto = onnx_program.model_proto  # a new copy at each access
    onnx.helper.set_model_props(proto, _to_properties(metadata))
    onnx.save(proto, str(file))


def _numbered_weights(predictor: Predictor) -> dict[str, Tensor]:
    """All members' weights, each name prefixed by its member's number and a dot."""
    return {
        f"{i}.{name}": value.contiguous()
        for i, member in enumerate(predictor.members, 1)
        for name, value in member.read().cpu().state_dict().items()
    }


def _write_weights(predictor: Predictor, metadata: dict[str, Any], file: Path) -> None:
    save_file(_numbered_weights(predictor), file, _to_properties(metadata))


def _verify_weights(predictor: Predictor, file: Path) -> dict[str, Any]:
    stored = load_file(file)
    for i, member in enumerate(predictor.members, 1):
        for name, value in member.read().state_dict().items():
            if not torch.equal(stored[f"{i}.{name}"], value):
                raise SeganError(f"{predictor.name}: weight {i}.{name} differs in the export")
    return {"weights": "bitwise equal"}


def _to_properties(metadata: dict[str, Any]) -> dict[str, str]:
    """The metadata as strings: JSON for everything else."""
    return {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
