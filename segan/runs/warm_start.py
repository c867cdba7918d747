"""The weights that a run begins from, `training.init`, instead of random ones.

Imports neither torch nor Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segan import storage
from segan.config import Config
from segan.errors import UsageError
from segan.runs.checkpoint import CRITIC_FILE, SEGMENTOR_FILE, Checkpoint
from segan.runs.ensemble import is_ensemble, read_ensemble
from segan.runs.identity import require_same
from segan.runs.run import INIT_PREFIX, find_checkpoint
from segan.runs.shipped import locate_model

# Keys of `network` that may differ: the number of maps is that of the last layer, the spectral norm
# that of the critic alone, and random weights are replaced.
_FREE_KEYS = {"classes", "spectral_norm", "segmentor_init"}


@dataclass(frozen=True)
class InitialWeights:
    """A model's weights, and which of them a run takes.

    Attributes:
        name: of the model, as `training.init` has it.
        checkpoint: of the weights; of an ensemble, that of its first member.
        same_classes: whether the segmentor's last layer is taken, and the first one of a critic
            that is taken.
        critic_reason: why the critic begins anew; "" if it is taken.
    """

    name: str
    checkpoint: Checkpoint
    same_classes: bool
    critic_reason: str

    @property
    def takes_critic(self) -> bool:
        return not self.critic_reason

    def identity(self) -> dict[str, Any]:
        """The weights' checksums, part of the run's identity; None for a critic that is not there.

        Two files of one name can differ: a run that is trained on, or a model that is replaced.
        """
        files = {"segmentor": SEGMENTOR_FILE, "critic": CRITIC_FILE}
        entries = {key: self.checkpoint.files.get(file, {}) for key, file in files.items()}
        return {f"{INIT_PREFIX}{key}_sha256": entry.get("sha256") for key, entry in entries.items()}

    def describe(self) -> str:
        """What is taken and what begins anew, in one line."""
        sha256 = self.checkpoint.entry(SEGMENTOR_FILE)["sha256"]
        taken, anew = [f"the segmentor (sha256 {sha256[:12]})"], []
        if not self.same_classes:
            anew.append("the segmentor's last layer (other classes)")
        if self.takes_critic:
            taken.append("the critic")
            if not self.same_classes:
                anew.append("the critic's first layer (other classes)")
        else:
            anew.append(f"the critic ({self.critic_reason})")
        anew.append("optimizers and schedules")
        return (
            f"training.init={self.name}: takes {' and '.join(taken)} of {self.checkpoint.name}; "
            f"begins anew: {', '.join(anew)}"
        )


def find_initial_weights(config: Config, labels: Sequence[str] = ()) -> InitialWeights | None:
    """The weights of `training.init`; None if it is empty.

    Reads the model's description and not its weights.

    Args:
        labels: names of the records' classes. Where there are several, those of the model must be
            the same in the same order, or its last layer is not taken.

    Raises:
        UsageError: its network has another shape than `config.network`.
        StorageError: there is no such model.
    """
    if not config.training.init:
        return None
    name, uri = locate_model(config.training.init)
    storage.check_access(uri)
    checkpoint = (
        read_ensemble(uri).checkpoints(uri)[0] if is_ensemble(uri) else find_checkpoint(uri)
    )
    found = checkpoint.config
    _require_same_shape(name, config, found)
    same_classes = config.network.classes == found.network.classes
    if len(labels) > 1:
        same_classes = tuple(labels) == checkpoint.labels
    reason = _critic_reason(config, found, checkpoint)
    return InitialWeights(name, checkpoint, same_classes, reason)


def require_unchanged(weights: InitialWeights, recorded: dict[str, Any], run: str) -> None:
    """Raises UsageError if a run was begun from other weights of the same name.

    Args:
        recorded: the run's identity.
        run: its URI.
    """
    expected = {key: recorded.get(key) for key in weights.identity()}
    if recorded and expected != weights.identity():
        raise UsageError(
            f"{run}: the weights of training.init={weights.name} have changed since the run began, "
            "which has no checkpoint yet; start it under another name"
        )


def _require_same_shape(name: str, config: Config, found: Config) -> None:
    shapes = [
        {f"network.{k}": v for k, v in c.network.model_dump().items() if k not in _FREE_KEYS}
        for c in (config, found)
    ]
    require_same(
        shapes[0],
        shapes[1],
        f"training.init={name}",
        "its weights fit a network of the same shape only, so set these keys as they are there",
    )


def _critic_reason(config: Config, found: Config, checkpoint: Checkpoint) -> str:
    """Why the critic cannot be taken; "" if it can."""
    if config.loss.critic == "none":
        return "not used"
    if CRITIC_FILE not in checkpoint.files:
        return "not in the model"
    if found.loss.critic == "none" or found.loss.adversarial_weight == 0:
        return "not trained in the model"
    kinds = [(c.loss.critic, c.network.spectral_norm) for c in (config, found)]
    return "" if kinds[0] == kinds[1] else "of another kind in the model"
