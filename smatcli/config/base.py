"""The base class of every recipe model."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """An immutable model that rejects unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
