"""Base class and bounds of pydantic models, for configurations and for files of storage."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MAX_FRAME_SIDE = 2048  # pixels; the paper's frames are 180 x 135

FrameSide = Annotated[int, Field(ge=1, le=MAX_FRAME_SIDE)]
Count = Annotated[int, Field(ge=0, le=2**63 - 1)]


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)
