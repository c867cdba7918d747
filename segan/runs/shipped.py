"""Models that ship with the package, which a bare name finds.

    segan/models/<name>/   an ensemble (`segan.runs.ensemble`) that `segan ensemble pack` wrote

Imports neither torch nor Ray.
"""

from __future__ import annotations

import os
from pathlib import Path

from segan import storage
from segan.errors import UsageError
from segan.runs.ensemble import ENSEMBLE_FILE

SHIPPED_FOLDER = Path(__file__).parents[1] / "models"


def shipped_models() -> dict[str, Path]:
    """The models that come with segan: their folders by their names, sorted."""
    return {
        path.parent.name: path.parent for path in sorted(SHIPPED_FOLDER.glob(f"*/{ENSEMBLE_FILE}"))
    }


def locate_model(model: str) -> tuple[str, str]:
    """The name and the URI of a model.

    The name is what another process, also on another machine, finds the model by: that of a shipped
    model, else the normalised URI. A shipped model takes precedence over a local folder of its
    name, which is found as `./NAME`.

    Args:
        model: the name of a shipped model, or the URI of a run, a checkpoint or an ensemble.

    Raises:
        UsageError: a word that is neither a shipped model nor a local folder, or an invalid URI.
    """
    shipped = shipped_models()
    if model in shipped:
        return model, str(shipped[model])
    uri = storage.normalise(model)
    is_word = "/" not in model and model not in (".", "..")
    if is_word and not os.path.exists(uri):
        raise UsageError(
            f"{model}: neither a model that ships with segan ({', '.join(shipped) or 'none'}) nor "
            "a folder here; expected the name of one, or the path or s3:// URI of a run, a "
            "checkpoint or an ensemble"
        )
    return uri, uri
