"""Reads the networks' weights of a checkpoint as float32, whatever precision they are stored in."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from segan import storage
from segan.config import NetworkConfig
from segan.errors import CorruptedError
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint
from segan.utils.text import shorten

MAX_DIFFERENCE = 200  # characters: names and shapes are the file's


def read_weights(checkpoint: Checkpoint, file: str = SEGMENTOR_FILE) -> dict[str, Tensor]:
    """The tensors of a checkpoint's file by name, float16 ones as float32.

    Raises:
        CorruptedError: the file does not match its checksum, or is not a safetensors file.
    """
    content = checkpoint.read(file)
    try:
        weights = load_tensors(content)
    except SafetensorError as error:
        where = storage.join(checkpoint.uri, file)
        raise CorruptedError(f"{where}: not a safetensors file ({error})") from None
    return to_float32(weights)


def to_float32(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights with float16 tensors as float32."""
    return {n: t.float() if t.dtype == torch.float16 else t for n, t in weights.items()}


def halve_weights(weights: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of weights with float16 kernels, at half the size.

    Vectors and scalars (biases, batch norms, k) stay float32: they are few, and a running variance
    can exceed float16's range.
    """
    return save_tensors(
        {
            name: (
                value.half() if value.ndim > 1 and value.is_floating_point() else value
            ).contiguous()
            for name, value in weights.items()
        }
    )


def read_segmentor(checkpoint: Checkpoint) -> Segmentor:
    """The segmentor of a checkpoint in evaluation mode.

    Raises:
        CorruptedError: the weights do not match their checksum, or not the configuration.
    """
    where = storage.join(checkpoint.uri, SEGMENTOR_FILE)
    return build_from_weights(checkpoint.config.network, read_weights(checkpoint), where)


def build_from_weights(
    config: NetworkConfig, weights: Mapping[str, Tensor], where: str
) -> Segmentor:
    """The segmentor of a configuration with these weights, in evaluation mode.

    Args:
        where: URI of the weights, for the message.

    Raises:
        CorruptedError: the weights are not those of the configuration.
    """
    with torch.device("meta"):  # allocates nothing, whatever sizes the configuration names
        expected = Segmentor(config).state_dict()
    if difference := find_difference(weights, expected):
        raise CorruptedError(
            f"{where}: not the weights of the checkpoint's configuration: {difference}"
        )
    segmentor = Segmentor(config)
    segmentor.load_state_dict(weights)
    return segmentor.eval()


def find_difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """The first tensor whose name, shape or type differs, in a short line; "" if all are equal."""
    if names := found.keys() ^ expected.keys():
        name = min(names)
        return shorten(f"{name} is {'missing' if name in expected else 'unknown'}", MAX_DIFFERENCE)
    for name, tensor in expected.items():
        if found[name].shape != tensor.shape or found[name].dtype != tensor.dtype:
            shapes = (f"{t.dtype} {list(t.shape)}" for t in (tensor, found[name]))
            return shorten(f"{name}: expected {' and found '.join(shapes)}", MAX_DIFFERENCE)
    return ""
