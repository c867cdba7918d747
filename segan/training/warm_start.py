"""Puts a model's weights into the networks of a new training (`training.init`)."""

from __future__ import annotations

from torch import nn

from segan import storage
from segan.errors import CorruptedError
from segan.inference.weights import find_difference, read_weights
from segan.runs.checkpoint import CRITIC_FILE, SEGMENTOR_FILE, Checkpoint
from segan.runs.warm_start import InitialWeights
from segan.training.step import SegAN

OUTPUT_LAYER = "out."  # prefixes of the tensors whose shape depends on the number of classes
CRITIC_INPUT_LAYER = "blocks.0."


def load_initial_weights(model: SegAN, initial: InitialWeights) -> None:
    """Copies the weights that `initial` takes; what begins anew keeps its random weights.

    Optimizers are left as they are. An EMA begins as the segmentor does.

    Raises:
        CorruptedError: a file does not match its checksum, or not the model's configuration.
    """
    output = "" if initial.same_classes else OUTPUT_LAYER
    _load(model.segmentor, initial.checkpoint, SEGMENTOR_FILE, output)
    if model.ema:
        model.ema.network.load_state_dict(model.segmentor.state_dict())
    if initial.takes_critic:
        critic_input = "" if initial.same_classes else CRITIC_INPUT_LAYER
        _load(model.critic, initial.checkpoint, CRITIC_FILE, critic_input)


def _load(network: nn.Module, checkpoint: Checkpoint, file: str, fresh: str) -> None:
    """Copies a file's tensors, but those whose name begins with `fresh` if that is not empty."""
    weights, expected = (
        {name: t for name, t in tensors.items() if not (fresh and name.startswith(fresh))}
        for tensors in (read_weights(checkpoint, file), network.state_dict())
    )
    if difference := find_difference(weights, expected):
        raise CorruptedError(
            f"{storage.join(checkpoint.uri, file)}: not the weights of the checkpoint's "
            f"configuration: {difference}"
        )
    network.load_state_dict(weights, strict=False)
