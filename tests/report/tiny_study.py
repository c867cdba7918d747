"""A study of three short runs on synthetic images, and their ensemble."""

from __future__ import annotations

from dataclasses import dataclass

from segan import storage
from segan.data.archive.reader import open_archive
from segan.data.ingest import IngestOptions, ingest, local_executor
from segan.data.records.format import read_manifest
from segan.data.synthetic import generate_archive
from segan.evaluation.select import find_candidates
from segan.report.ensemble import build_ensemble
from segan.runs.run import Run
from segan.runs.study import Study
from segan.runs.trial import TrialStatus
from segan.training.launch import train_local
from tests.inference.models import tiny_config

SPLITS = {"train": 8, "validation": 7, "test": 1}


@dataclass(frozen=True)
class TinyStudy:
    """URIs."""

    records: str
    study: str
    runs: tuple[str, ...]
    ensemble: str


def build_tiny_study(root: str) -> TinyStudy:
    """Builds everything below `root`; writes only the ensemble's report."""
    archive, records = f"{root}/archive", f"{root}/records"
    generate_archive(
        SPLITS, 0, lambda name, body: storage.write_bytes(f"{archive}/{name}", body), 64
    )
    ingest(open_archive(archive), records, IngestOptions((80, 64)), local_executor(1))
    config = tiny_config(
        records, "training.epochs=3", "training.log_every_steps=1", "search.trials=3"
    )
    study = Study(f"{root}/study")
    trials = study.create_or_resume(config, read_manifest(records).fingerprint)
    for trial in trials:
        train_local(trial.build_config(config), trial.run)
        trial.mark_done(TrialStatus.FINISHED, 1.0)
    ensemble = f"{root}/ensemble"
    build_ensemble(ensemble, find_candidates(study.uri))
    runs = tuple(Run(trial.run.uri).uri for trial in trials)
    return TinyStudy(records, study.uri, runs, ensemble)
