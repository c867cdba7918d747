"""Packs an ensemble as a model to hand on: half-size weights, scores of those, and no paths.

The result is an ensemble (`segan.runs.ensemble`) in one folder, found by that folder's name once
it lies among the models that ship with the package.
"""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from segan import storage
from segan.data.archive.pairs import Archive
from segan.data.archive.reader import open_archive
from segan.data.records.frames import map_samples
from segan.data.records.versions import read_version
from segan.evaluation.probability_cache import ProbabilityCache
from segan.evaluation.result import evaluate_members
from segan.evaluation.score import ScoreTask, check_classes, score_intervals
from segan.inference.pipeline import run_image_task
from segan.inference.predictor import Member, Predictor
from segan.inference.weights import halve_weights, read_weights
from segan.report.card import ArchiveScores, build_commands, render_card
from segan.report.ensemble import score_fields
from segan.runs.checkpoint import SEGMENTOR_FILE, CheckpointInfo, StoredFile, short_name
from segan.runs.ensemble import (
    Choice,
    Ensemble,
    EnsembleMember,
    check_output,
    read_ensemble,
    write_ensemble,
)
from segan.storage.lease import current_fence, hold_lease


def pack_ensemble(
    source: str,
    out: str,
    half: bool = False,
    tta: bool | None = None,
    records: str = "",
    archive: str = "",
    overwrite: bool = False,
    log: Callable[[str], None] = lambda line: None,
) -> Ensemble:
    """Writes an ensemble's weights, the scores of these weights and a card to `out`.

    The threshold and all scores are those of the packed weights, on the validation frames that the
    ensemble was selected on. Runs are named as <run>/<checkpoint>, without their place.

    Args:
        source: URI of the ensemble.
        half: store the kernels as float16.
        tta: sets the members' `evaluation.tta`.
        records: URI of the records; default: those that the ensemble names.
        archive: URI of the archive of these records, to score the validation images at their own
            size for the card.
        log: called with a message before each long work.

    Raises:
        UsageError: `out` is not free, or another process writes there.
        StorageError: the ensemble, its weights or the records cannot be read, or not written.
    """
    with hold_lease(out):
        return _pack(
            storage.normalise(source),
            storage.normalise(out),
            half,
            tta,
            records,
            archive,
            overwrite,
            log,
        )


def _pack(
    source: str,
    out: str,
    half: bool,
    tta: bool | None,
    records: str,
    archive: str,
    overwrite: bool,
    log: Callable[[str], None],
) -> Ensemble:
    ensemble = read_ensemble(source)
    check_output(out, overwrite, len(ensemble.members))
    advice = "pass the records that the ensemble was built on with --records"
    records = storage.normalise(records or ensemble.records)
    manifest = read_version(records, ensemble.fingerprint, advice)
    opened = open_archive(archive) if archive else None  # fail before a long work
    with tempfile.TemporaryDirectory() as folder:
        samples = map_samples(records, manifest, ensemble.validation_split, Path(folder))
        staged = f"{folder}/{storage.basename(out)}"
        packed = _stage_members(ensemble, source, staged, half, tta)
        packed = packed.model_copy(update={"records": storage.basename(records)})
        checkpoints = packed.checkpoints(staged)
        maps = ProbabilityCache(samples, Path(folder), log)
        sweep = maps.sweep(checkpoints)
        packed = packed.model_copy(update=score_fields(sweep, packed.labels))
        result = evaluate_members(
            maps, packed.validation_split, checkpoints, packed.thresholds, packed.labels
        )
        archive_scores = _score_archive(packed, staged, opened, log) if opened else None
        commands = [*build_commands(ensemble), _pack_command(out, half, tta)]
        card = render_card(storage.basename(out), packed, result, commands, archive_scores)
        current_fence(out)()
        write_ensemble(out, packed, checkpoints, card, overwrite)
    return packed


def _pack_command(out: str, half: bool, tta: bool | None) -> str:
    words = ["segan", "ensemble", "pack", "ENSEMBLE", storage.basename(out)]
    words += ["--half"] * half + ([] if tta is None else ["--tta" if tta else "--no-tta"])
    return shlex.join(words)


def _stage_members(
    ensemble: Ensemble, source: str, staged: str, half: bool, tta: bool | None
) -> Ensemble:
    """Writes the members' weights to a local folder; returns the ensemble of these files."""
    members = []
    for number, checkpoint in enumerate(ensemble.checkpoints(source), 1):
        content = checkpoint.read(SEGMENTOR_FILE)
        if half:
            content = halve_weights(read_weights(checkpoint))
        storage.write_bytes(storage.join(staged, str(number), SEGMENTOR_FILE), content)
        member = ensemble.members[number - 1]
        members.append(
            EnsembleMember(
                uri=short_name(member.uri),
                k=member.k,
                files={
                    SEGMENTOR_FILE: StoredFile(sha256=storage.sha256(content), size=len(content))
                },
                info=_without_places(checkpoint.info, tta),
            )
        )
    choices = {
        rule: Choice(**vars(choice) | {"members": tuple(map(short_name, choice.members))})
        for rule, choice in ensemble.choices.items()
    }
    return ensemble.model_copy(
        update={
            "members": tuple(members),
            "choices": choices,
            "candidates": {short_name(uri): j for uri, j in ensemble.candidates.items()},
        }
    )


def _without_places(info: CheckpointInfo, tta: bool | None) -> CheckpointInfo:
    """A checkpoint's info without the trainer's state and the records' place."""
    config = {section: dict(values) for section, values in info.config.items()}
    config["data"]["records"] = storage.basename(config["data"]["records"])
    if tta is not None:
        config["evaluation"]["tta"] = tta
    config.pop("tracking", None)
    return replace(info, progress=None, config=config)


def _score_archive(
    ensemble: Ensemble, uri: str, archive: Archive, log: Callable[[str], None]
) -> ArchiveScores:
    """Scores at the images' own sizes."""
    checkpoints = ensemble.checkpoints(uri)
    members = [Member.from_checkpoint(checkpoint) for checkpoint in checkpoints]
    predictor = Predictor(
        members, checkpoints[0].frame_size, ensemble.thresholds, uri, ensemble.labels
    )
    check_classes(predictor, archive)
    pairs = archive.split(ensemble.validation_split)
    log(f"scoring {len(pairs)} images of {ensemble.validation_split} at their own size")
    rows = list(run_image_task(predictor, pairs, ScoreTask(archive.classes)))
    return ArchiveScores(len(rows), score_intervals(rows))
