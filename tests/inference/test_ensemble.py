"""Ensembles: chosen, written, read back, and used like any other model.

Crafted runs hold segmentors of random weights, which disagree as much as one could wish, with
scores that are made up; trained runs come from the real loop.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load, save

from segan import storage
from segan.config import Config
from segan.data.records.format import (
    Record,
    make_manifest,
    read_manifest,
    write_manifest,
    write_shard,
)
from segan.errors import StorageError, UsageError
from segan.evaluation.metrics import confusion
from segan.evaluation.select import find_candidates, select_members_greedily
from segan.inference.frames import segment_frames
from segan.inference.predictor import Member, Predictor
from segan.inference.thresholds import THRESHOLDS
from segan.inference.weights import read_segmentor
from segan.networks.segmentor import Segmentor, build_segmentor
from segan.report.ensemble import build_ensemble
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint, CheckpointInfo
from segan.runs.ensemble import read_ensemble
from segan.runs.run import REPORT_FILES, Run
from segan.storage.lease import LEASE_FILE
from tests.drivers import Driver
from tests.inference.models import FRAME, copy_files, read_files, run_uri, tiny_config
from tests.samples import read_samples

WIDTH, HEIGHT = FRAME

CLAIMED_JACCARDS = (0.9, 0.8, 0.7, 0.6, 0.5)  # of the crafted runs a to e
TRUTH_RUNS = ("a", "d", "e")  # the truth is the ensemble mask of these three


@pytest.fixture(scope="module")
def write_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Writes a run with one checkpoint of a given segmentor."""
    root = tmp_path_factory.mktemp("candidates")

    def write(
        name: str,
        segmentor: Segmentor,
        jaccard: float = 0.5,
        fingerprint: str = "f",
        size: tuple[int, int] = (WIDTH, HEIGHT),
        config: Config | None = None,
        checkpoint: str = "epoch_00001",
    ) -> Checkpoint:
        info = CheckpointInfo(
            epochs=1,
            samples=8,
            metrics={"accuracy": 0.9, "dice": 0.8, "jaccard": jaccard, "threshold": 0.5},
            fingerprint=fingerprint,
            frame={"width": size[0], "height": size[1]},
            config=(config or tiny_config()).model_dump(mode="json"),
        )
        weights = {key: value.contiguous() for key, value in segmentor.state_dict().items()}
        return Run(str(root / name)).save_checkpoint(
            checkpoint, {SEGMENTOR_FILE: save(weights)}, info
        )

    return write


def constant_segmentor(probability: float) -> Segmentor:
    """A segmentor whose maps are `probability` everywhere: only the last bias is not 0."""
    segmentor = build_segmentor(tiny_config().network)
    for parameter in segmentor.parameters():
        parameter.data.zero_()
    odds = torch.tensor(probability / (1 - probability))
    segmentor.out.bias.data.fill_(odds.log())
    return segmentor


def make_ensemble(checkpoints: Sequence[Checkpoint], threshold: float) -> Predictor:
    members = [Member.from_checkpoint(checkpoint) for checkpoint in checkpoints]
    return Predictor(members, checkpoints[0].frame_size, threshold, "three")


def noise_images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def candidate_runs(
    write_run: Callable[..., Checkpoint], tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Checkpoint], str]:
    """Five runs a to e, and the URI of the records in their configs."""
    images, names = noise_images(5), "abcde"
    networks = {
        name: build_segmentor(tiny_config().network, seed).eval()
        for seed, name in enumerate("abcde")
    }
    maps = {
        n: segment_frames(net, torch.tensor(images), tiny_config()) for n, net in networks.items()
    }
    mean = sum(maps[n] for n in TRUTH_RUNS) / 3
    truth = (mean > mean.median()).numpy().astype(np.uint8)
    uri = str(tmp_path_factory.mktemp("records"))
    rows = [Record(str(i), images[i], truth[i], (100, 80)) for i in range(5)]
    shards = [
        write_shard(uri, name, part, HEIGHT, WIDTH, 1)
        for name, part in (("first", rows[:3]), ("second", rows[3:]))
    ]
    splits: dict[str, Sequence] = {"train": shards[:1], "validation": shards}
    manifest = make_manifest((HEIGHT, WIDTH, 1), splits, [], "candidates")
    write_manifest(uri, manifest, [])
    config = tiny_config(uri)
    made = [
        write_run(n, networks[n], jaccard, manifest.fingerprint, config=config)
        for n, jaccard in zip(names, CLAIMED_JACCARDS, strict=True)
    ]
    return made, uri


@pytest.fixture
def ensemble(candidate_runs: tuple[list[Checkpoint], str], tmp_path: Path) -> str:
    """The URI of an ensemble of the crafted runs a, b and c."""
    build_ensemble(f"{tmp_path}/three", candidate_runs[0])
    return f"{tmp_path}/three"


# The mean and its threshold


def test_the_map_is_the_mean_of_the_members_maps(write_run: Callable[..., Checkpoint]) -> None:
    # (0.2 + 0.3 + 0.7) / 3 = 0.4: above 0.35, although two of the three are below it.
    members = [write_run(f"constant{p}", constant_segmentor(p)) for p in (0.2, 0.3, 0.7)]
    image = Image.new("RGB", (50, 90))
    for threshold, lesion in ((0.35, True), (0.45, False)):
        found = make_ensemble(members, threshold)(image)
        assert found.probability.shape == found.mask.shape == (90, 50)
        np.testing.assert_allclose(found.probability, 0.4, rtol=1e-5)
        assert (found.mask == lesion).all()


def test_each_member_keeps_its_own_threshold(
    write_run: Callable[..., Checkpoint],
) -> None:
    members = [
        write_run(f"own{p}", constant_segmentor(p)) for p in (0.2, 0.45, 0.85)
    ]  # the mean is 0.5
    found = list(make_ensemble(members, 0.4).predict_members(Image.new("RGB", (64, 64))))
    assert [bool(one.mask.all()) for one in found] == [False, False, True, True]


def test_threshold_is_the_best_of_a_brute_force_search(
    candidate_runs: tuple[list[Checkpoint], str], ensemble: str
) -> None:
    curve = brute_force_curve(candidate_runs[0][:3], candidate_runs[1])
    written = read_ensemble(ensemble)
    np.testing.assert_allclose(written.jaccard_curve, curve, atol=1e-6)
    best = THRESHOLDS[curve >= curve.max()]
    assert written.threshold == best[len(best) // 2]
    assert written.scores["jaccard"] == pytest.approx(curve.max(), abs=1e-12)


def brute_force_curve(members: Sequence[Checkpoint], records: str) -> np.ndarray:
    """Jaccard of the members' mean map on validation at each threshold."""
    images = torch.tensor(noise_images(5))
    maps = [segment_frames(read_segmentor(m), images, m.config).numpy() for m in members]
    mean = np.add.reduce(maps) / np.float32(len(maps))
    truth = read_truth(records)
    masks = (mean > np.float32(threshold) for threshold in THRESHOLDS)
    return np.array([confusion(mask, truth).scores()["jaccard"].mean() for mask in masks])


def read_truth(records: str) -> np.ndarray:
    return read_samples(records, read_manifest(records), "validation").mask != 0


# Selection


def test_default_takes_the_three_best_runs(
    candidate_runs: tuple[list[Checkpoint], str], ensemble: str
) -> None:
    assert [m.uri for m in read_ensemble(ensemble).members] == [
        c.uri for c in candidate_runs[0][:3]
    ]


def test_greedy_adds_the_best_member_and_reports_the_default_too(
    candidate_runs: tuple[list[Checkpoint], str], tmp_path: Path
) -> None:
    runs, records = candidate_runs
    found = build_ensemble(f"{tmp_path}/greedy", runs, greedy=True)

    def score(members: Sequence[Checkpoint]) -> float:
        return float(brute_force_curve(members, records).max())

    second = max(runs[1:], key=lambda c: score([runs[0], c]))
    third = max((c for c in runs[1:] if c is not second), key=lambda c: score([runs[0], second, c]))
    assert [m.uri for m in found.members] == [c.uri for c in (runs[0], second, third)]
    assert (found.rule, set(found.choices)) == ("greedy", {"best", "greedy"})
    assert found.choices["best"].jaccard == pytest.approx(score(runs[:3]), abs=1e-12)
    assert found.choices["greedy"].jaccard == found.scores["jaccard"]
    # The truth is made from a, d and e, so greedy selection beats the three best claims.
    assert found.scores["jaccard"] > found.choices["best"].jaccard
    assert found.scores["jaccard"] >= max(score([member]) for member in (runs[0], second, third))


def test_greedy_by_hand() -> None:
    # From a: with b 5, with c 7, so c; then with b 6, with d 8, so d. Ties go to the earliest.
    scores = {"ab": 5, "ac": 7, "ad": 7, "acb": 6, "acd": 8}
    chosen = select_members_greedily("abcd", lambda members: scores["".join(members)])
    assert chosen == ["a", "c", "d"]


def test_candidates_come_from_different_runs(candidate_runs: tuple[list[Checkpoint], str]) -> None:
    runs = [run_uri(c) for c in candidate_runs[0]]
    found = find_candidates(None, [runs[1], candidate_runs[0][0].uri, runs[0], runs[4], runs[1]])
    assert [c.uri for c in found] == [candidate_runs[0][i].uri for i in (0, 1, 4)]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_only_the_best_checkpoint_of_a_run_is_a_candidate(
    order: tuple[int, int],
    candidate_runs: tuple[list[Checkpoint], str],
    write_run: Callable[..., Checkpoint],
) -> None:
    both = [
        write_run("two", constant_segmentor(p), p, checkpoint=f"epoch_{p}") for p in (0.6, 0.55)
    ]
    named = [both[order[0]].uri, both[order[1]].uri, candidate_runs[0][0].uri]
    with pytest.raises(UsageError, match="found 2"):
        find_candidates(None, named)
    found = find_candidates(None, [*named, candidate_runs[0][1].uri])
    assert [c.jaccard for c in found] == [0.9, 0.8, 0.6]


def test_the_same_weights_in_two_runs_count_once(
    candidate_runs: tuple[list[Checkpoint], str], write_run: Callable[..., Checkpoint]
) -> None:
    twin = write_run("twin", build_segmentor(tiny_config().network, 0))
    with pytest.raises(UsageError, match="found 2"):
        find_candidates(None, [twin.uri, candidate_runs[0][0].uri, candidate_runs[0][1].uri])


def test_unknown_member_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nowhere: neither a checkpoint nor a run"):
        find_candidates(None, [f"{tmp_path}/nowhere"])


# Members that do not fit


@pytest.mark.parametrize(
    ("what", "difference"),
    [
        ("frame", {"size": (128, HEIGHT)}),
        ("data fingerprint", {"fingerprint": "other"}),
        ("number of classes", {"config": tiny_config("", "network.classes=2")}),
        ("validation split", {"config": tiny_config("", "data.validation=test")}),
    ],
)
def test_members_that_differ_are_refused(
    what: str,
    difference: dict,
    candidate_runs: tuple[list[Checkpoint], str],
    write_run: Callable[..., Checkpoint],
    tmp_path: Path,
) -> None:
    runs, records = candidate_runs
    same = {"fingerprint": runs[0].info.fingerprint, "config": tiny_config(records)}
    other = write_run(f"other {what}", constant_segmentor(0.5), 0.4, **(same | difference))
    with pytest.raises(
        UsageError, match=f"{other.uri}: {what} is .*, expected .*; the members .* {runs[0].uri}"
    ):
        build_ensemble(f"{tmp_path}/out", [*runs, other])
    assert storage.list_files(f"{tmp_path}/out") == []


def test_a_checkpoint_that_fails_its_checksum_is_refused(
    candidate_runs: tuple[list[Checkpoint], str],
    write_run: Callable[..., Checkpoint],
    tmp_path: Path,
) -> None:
    runs, records = candidate_runs
    fingerprint = runs[0].info.fingerprint
    bad = write_run("bad", constant_segmentor(0.1), 0.99, fingerprint, config=tiny_config(records))
    weights = f"{bad.uri}/{SEGMENTOR_FILE}"
    storage.write_bytes(weights, storage.read_bytes(weights)[:-1] + b"!")
    with pytest.raises(StorageError, match="checksum"):
        build_ensemble(f"{tmp_path}/out", [bad, *runs])
    assert storage.list_files(f"{tmp_path}/out") == []


def test_a_folder_in_use_is_not_changed(
    candidate_runs: tuple[list[Checkpoint], str], ensemble: str, tmp_path: Path
) -> None:
    before = read_files(ensemble)
    with pytest.raises(UsageError, match="--overwrite"):
        build_ensemble(ensemble, candidate_runs[0], greedy=True)
    other = Driver.start()
    try:
        assert other.hold(ensemble) == "held"
        with pytest.raises(UsageError, match=f"locked by process {other.process.pid} on "):
            build_ensemble(ensemble, candidate_runs[0], greedy=True, overwrite=True)
    finally:
        other.kill()
    storage.delete_file(f"{ensemble}/{LEASE_FILE}")
    assert read_files(ensemble) == before
    build_ensemble(ensemble, candidate_runs[0], greedy=True, overwrite=True)
    assert read_ensemble(ensemble).rule == "greedy"
    storage.write_bytes(f"{tmp_path}/mine/thesis.txt", b"words")
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        build_ensemble(f"{tmp_path}/mine", candidate_runs[0], overwrite=True)
    assert read_files(f"{tmp_path}/mine") == {"thesis.txt": b"words"}


# In storage


def test_an_ensemble_contains_weights_description_and_report(
    candidate_runs: tuple[list[Checkpoint], str], ensemble: str
) -> None:
    files = read_files(ensemble)
    weights = {f"{i}/{SEGMENTOR_FILE}" for i in (1, 2, 3)}
    assert set(files) == {"ensemble.json", "card.md", *REPORT_FILES} | weights
    written = json.loads(files["ensemble.json"])
    manifest = read_manifest(candidate_runs[1])
    assert written["fingerprint"] == manifest.fingerprint
    assert written["splits"] == {"train": 3, "validation": 5}
    assert written["frame"] == {"width": WIDTH, "height": HEIGHT}
    assert len(written["jaccard_curve"]) == len(THRESHOLDS)
    assert written["candidates"] == {c.uri: c.jaccard for c in candidate_runs[0]}
    for i, (member, source) in enumerate(
        zip(written["members"], candidate_runs[0][:3], strict=True), 1
    ):
        weights = files[f"{i}/{SEGMENTOR_FILE}"]
        assert member["uri"] == source.uri
        assert member["files"][SEGMENTOR_FILE]["sha256"] == storage.sha256(weights)
        assert member["k"] == float(load(weights)["logistic.k"])
        assert member["info"]["metrics"]["jaccard"] == source.jaccard
        assert member["info"]["config"]["network"]["width"] == 2
        assert member["info"]["config"]["evaluation"]["resize_mode"] == "native"


def test_the_card_names_scores_members_and_data(ensemble: str) -> None:
    card, written = read_files(ensemble)["card.md"].decode(), read_ensemble(ensemble)
    scores = [f"{written.scores['jaccard']:.4f}", f"{written.threshold:g}"]
    sources = [member.uri for member in written.members]
    data = [written.fingerprint, "3 train, 5 validation", f"{WIDTH} x {HEIGHT}"]
    for words in [*scores, *sources, *data, "segan predict", "no medical device"]:
        assert words in card


def test_an_incomplete_ensemble_is_not_loaded(ensemble: str) -> None:
    storage.delete_file(f"{ensemble}/ensemble.json")
    with pytest.raises(StorageError, match="neither"):
        Predictor.load(ensemble)


def test_damaged_weights_and_descriptions_are_refused(ensemble: str) -> None:
    storage.write_bytes(f"{ensemble}/2/{SEGMENTOR_FILE}", b"short")
    with pytest.raises(StorageError, match=r"2/segmentor.safetensors: 5 bytes"):
        Predictor.load(ensemble)
    storage.write_json(f"{ensemble}/ensemble.json", {"members": []})
    with pytest.raises(StorageError, match="not an ensemble"):
        Predictor.load(ensemble)


# As a model


def test_checkpoint_run_and_ensemble_are_loaded_alike(
    candidate_runs: tuple[list[Checkpoint], str], ensemble: str
) -> None:
    best = candidate_runs[0][0]
    for uri, members, threshold in (
        (best.uri, 1, 0.5),
        (run_uri(best), 1, 0.5),
        (ensemble, 3, read_ensemble(ensemble).threshold),
    ):
        model = Predictor.load(uri)
        assert (len(model.members), model.threshold) == (members, threshold)
        assert model.frame_size == (WIDTH, HEIGHT)
        assert Predictor.load(model.name, 0.25).threshold == 0.25
        assert model(Image.fromarray(noise_images(1)[0])).mask.shape == (HEIGHT, WIDTH)


def test_an_ensemble_can_be_moved(ensemble: str, tmp_path: Path) -> None:
    copy_files(ensemble, f"{tmp_path}/moved")
    image = Image.fromarray(noise_images(1)[0])
    there, here = Predictor.load(f"{tmp_path}/moved"), Predictor.load(ensemble)
    assert all(m.name.startswith(f"{tmp_path}/moved/") for m in there.members)
    np.testing.assert_array_equal(there(image).probability, here(image).probability)


def test_low_memory_gives_the_same_maps(ensemble: str) -> None:
    image = Image.fromarray(noise_images(1)[0]).resize((300, 200))
    together, apart = Predictor.load(ensemble), Predictor.load(ensemble, low_memory=True)
    assert together(image).probability.tobytes() == apart(image).probability.tobytes()
    assert all(member.read() is member.read() for member in together.members)
    assert not any(member.read() is member.read() for member in apart.members)
