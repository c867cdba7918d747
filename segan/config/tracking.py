"""The configuration of experiment trackers."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field, field_validator

from segan.config.base import FrozenConfig


class TrackingConfig(FrozenConfig):
    """Experiment trackers that show a training while it runs, beside TensorBoard."""

    mlflow: str | None = Field(
        None, description="URI of an MLflow server that gets the metrics; needs segan[mlflow]."
    )
    wandb: str | None = Field(
        None, description="Project of Weights & Biases that gets the metrics; needs segan[wandb]."
    )

    @field_validator("mlflow")
    @classmethod
    def _check_no_credentials(cls, uri: str | None) -> str | None:
        if uri is not None and "@" in urlsplit(uri).netloc:  # run.json has the configuration
            raise ValueError(
                "expected a URI without credentials; set MLFLOW_TRACKING_USERNAME and "
                "MLFLOW_TRACKING_PASSWORD"
            )
        return uri
