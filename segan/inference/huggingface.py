"""Models as a folder of the Hugging Face Hub, written and read.

    <folder>/config.json         the members' configurations and thresholds, the weights' checksum
             model.safetensors   each member's weights, prefixed with its number
             README.md           a model card with front matter

`huggingface_hub` uploads and downloads such a folder as it is; nothing here needs that package.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from segan import storage
from segan.config import Config, parse_config
from segan.errors import CorruptedError
from segan.inference.weights import build_from_weights, to_float32
from segan.networks.segmentor import Segmentor
from segan.runs.checkpoint import Frame, StoredFile
from segan.utils.labels import LESION, ClassNames
from segan.utils.models import FrozenModel

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
MODEL_TYPE = "segan"
Thresholds = tuple[Annotated[float, Field(gt=0, lt=1)], ...]
SECTIONS = {"network", "augment", "evaluation"}  # of a run's configuration, for its segmentor
EXPECTED = "the configuration of a segan model"


class HubMember(FrozenModel):
    """A member in config.json; `config` has the SECTIONS of its run's configuration.

    `class_thresholds` has those of several classes.
    """

    checkpoint: str
    sha256: str
    threshold: float = Field(gt=0, lt=1)
    class_thresholds: Thresholds = ()
    config: dict[str, dict[str, Any]]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Each class's threshold."""
        return self.class_thresholds or (self.threshold,)

    def parse_config(self) -> Config:
        return parse_config(self.config)


class HubModel(FrozenModel):
    """The content of config.json that is read; it has more for other programs.

    Attributes:
        class_names, class_thresholds: of several classes; empty for the lesion alone. `threshold`
            is then that of the first.
        weights: checksum and size of WEIGHTS_FILE.
    """

    model_type: Literal["segan"]
    threshold: float = Field(gt=0, lt=1)
    class_names: ClassNames = ()
    class_thresholds: Thresholds = ()
    frame: Frame
    members: tuple[HubMember, ...] = Field(min_length=1)
    weights: StoredFile

    @model_validator(mode="after")
    def _check_classes(self) -> HubModel:
        count = len(self.labels)
        for thresholds in (self.thresholds, *(member.thresholds for member in self.members)):
            if len(thresholds) != count:
                raise ValueError(f"{len(thresholds)} thresholds for {count} classes")
        return self

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Each class's threshold."""
        return self.class_thresholds or (self.threshold,)

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.class_names or (LESION,)


def is_hub_model(uri: str) -> bool:
    """Whether a folder is a segan model of the Hub; other programs have a config.json too."""
    name = storage.join(uri, CONFIG_FILE)
    if not storage.exists(name):
        return False
    content = storage.read_json(name)
    return isinstance(content, dict) and content.get("model_type") == MODEL_TYPE


def read_hub_model(uri: str) -> HubModel:
    """The description of a folder; raises StorageError where it is not valid."""
    return storage.read_model(storage.join(uri, CONFIG_FILE), HubModel, EXPECTED)


def read_hub_segmentor(uri: str, model: HubModel, number: int) -> Segmentor:
    """A member's segmentor in evaluation mode.

    Args:
        number: of the member, from 1.

    Raises:
        CorruptedError: the weights do not match their checksum, or not the configuration.
    """
    where, prefix = storage.join(uri, WEIGHTS_FILE), f"{number}."
    content = storage.read_bytes(where)
    if storage.sha256(content) != model.weights.sha256:
        raise CorruptedError(
            f"{where}: {len(content)} bytes that do not match the checksum in {CONFIG_FILE} "
            f"({model.weights.size} bytes expected); use another copy"
        )
    try:
        tensors = load_tensors(content)
    except SafetensorError as error:
        raise CorruptedError(f"{where}: not a safetensors file ({error})") from None
    own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
    config = model.members[number - 1].parse_config()
    return build_from_weights(config.network, to_float32(own), where)


def encode_weights(weights: dict[str, Tensor]) -> bytes:
    """The content of WEIGHTS_FILE."""
    return save_tensors(weights, {"format": "pt"})
