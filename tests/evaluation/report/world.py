"""A study of three short runs on drawn images, and the ensemble of them."""

from __future__ import annotations

from dataclasses import dataclass

from segan import storage
from segan.data.archive import open_archive
from segan.data.ingest import Options, here, ingest
from segan.data.synthetic import draw_archive
from segan.evaluation.select import build_ensemble, find_candidates
from segan.runs import Run
from segan.search import Study
from segan.training.session import train_here
from tests.inference.models import tiny

SPLITS = {"train": 8, "validation": 7, "test": 1}


@dataclass(frozen=True)
class World:
    """URIs."""

    records: str
    study: str
    runs: tuple[str, ...]
    ensemble: str


def build(root: str) -> World:
    """Everything below `root`; no report is written but the ensemble's."""
    archive, records = f"{root}/archive", f"{root}/records"
    draw_archive(SPLITS, 0, lambda name, body: storage.write_bytes(f"{archive}/{name}", body), 64)
    ingest(open_archive(archive), records, Options((80, 64)), here(1))
    config = tiny(records, "training.epochs=3", "training.log_every=1", "search.trials=3")
    study = Study(f"{root}/study")
    trials = study.begin(config, "of no matter here")
    for trial in trials:
        train_here(trial.configure(config), trial.run)
        trial.finish("finished", 1.0)
    ensemble = f"{root}/ensemble"
    build_ensemble(ensemble, find_candidates(study.uri))
    runs = tuple(Run(trial.run.uri).uri for trial in trials)
    return World(records, study.uri, runs, ensemble)
