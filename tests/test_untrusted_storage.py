"""Files of storage with any content: a reader returns a value or raises one error of one line.

`SEGAN_FUZZ_EXAMPLES=100000 pytest tests/test_untrusted_storage.py` tries as many contents for all
readers together, at random; without it, a few hundred that are always the same.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segan import storage
from segan.cli.main import main
from segan.data.archive.label_classes import CLASSES_FILE, read_classes
from segan.data.records.format import (
    REJECTS,
    Record,
    make_manifest,
    read_manifest,
    read_rejects,
    read_shard,
    shard_prefix,
    to_samples,
    write_manifest,
    write_shard,
)
from segan.data.records.versions import EARLIER_MANIFESTS, read_version
from segan.errors import CorruptedError, SeganError
from segan.inference.masks import MaskWriter
from segan.inference.predictions import MODEL_FILE, PredictionTable, read_predictions
from segan.inference.predictor import Predictor, read_segmentor
from segan.networks.segmentor import build_segmentor
from segan.runs.checkpoint import SEGMENTOR_FILE, Checkpoint, open_checkpoint
from segan.runs.listing import describe_run, find_runs
from segan.runs.metrics_file import PARTS_FOLDER, MetricsWriter, write_metrics
from segan.runs.run import Run
from segan.runs.study import Study
from segan.runs.transfer import download_checkpoint
from segan.runs.trial import TrialStatus
from segan.storage.lease import read_holder
from segan.training.tensor_file import load_tensors
from tests.browser.server import write_test_ensemble
from tests.inference.models import (
    save_checkpoint,
    save_weights,
    small_config,
    untrained_predictor,
)

FUZZ_EXAMPLES = int(os.environ.get("SEGAN_FUZZ_EXAMPLES", "0"))
CHECKPOINT = "run/checkpoints/epoch_00001"
MAX_EXTRA_MEMORY = 2**30  # bytes, above the peak before; a file of storage has at most 256 MiB


class Reader(NamedTuple):
    """A file, by a pattern of its name below the folder of `place`, and what reads it.

    Attributes:
        header: whether only the header of a safetensors file is changed.
    """

    file: str
    read: Callable[[str], Any]
    header: bool = False


def read_run(place: str) -> None:
    describe_run(Run(f"{place}/run"))


def read_checkpoint(place: str) -> None:
    checkpoint = open_checkpoint(f"{place}/{CHECKPOINT}")
    for attribute in ("jaccard", "threshold", "frame_size", "config"):
        with contextlib.suppress(SeganError):
            getattr(checkpoint, attribute)
    Predictor.load(checkpoint.uri)


def read_study(place: str) -> None:
    study = Study(f"{place}/study")
    study.command(), study.config()
    for row in study.leaderboard_rows():
        assert row.jaccard <= 1


def read_records(place: str) -> None:
    manifest = read_manifest(f"{place}/records")
    for split in manifest.splits:
        assert manifest.num_rows(split) >= 0


def read_earlier_records(place: str) -> None:
    read_version(f"{place}/records", "earlier")


def read_rows(place: str) -> None:
    """As if a hostile store had changed the checksum in the manifest, too."""
    uri = f"{place}/records"
    manifest = read_manifest(uri)
    shard = manifest.shards("train")[0]
    sha256 = storage.file_sha256(f"{uri}/{shard.name}")
    to_samples(read_shard(uri, shard.model_copy(update={"sha256": sha256})), manifest)


def with_matching_checksum(uri: str, file: str) -> Checkpoint:
    """As if a hostile store had changed the checksum in the manifest, too."""
    checkpoint, name = open_checkpoint(uri), f"{uri}/{file}"
    entry = {"sha256": storage.file_sha256(name), "size": storage.file_size(name)}
    return dataclasses.replace(checkpoint, files={**checkpoint.files, file: entry})


def read_weights(place: str) -> None:
    read_segmentor(with_matching_checksum(f"{place}/{CHECKPOINT}", SEGMENTOR_FILE))


def resume_weights(place: str) -> None:
    checkpoint = with_matching_checksum(f"{place}/{CHECKPOINT}", SEGMENTOR_FILE)
    segmentor = build_segmentor(small_config().network, 0)
    load_tensors(checkpoint, SEGMENTOR_FILE, lambda _: segmentor.state_dict())


def download(place: str) -> None:
    checkpoint = open_checkpoint(f"{place}/{CHECKPOINT}")
    download_checkpoint(checkpoint, f"{place}/pulled", [SEGMENTOR_FILE], lambda _: None)


def predict_again(place: str) -> None:
    PredictionTable(MaskWriter(f"{place}/masks"), untrained_predictor())


READERS = {
    "run": Reader("run/run.json", read_run),
    "metrics": Reader("run/metrics.jsonl", read_run),
    "metrics of a run that trains": Reader(
        f"training/{PARTS_FOLDER}/*.jsonl", lambda p: Run(f"{p}/training").metrics()
    ),
    "trial's result": Reader("run/result.json", lambda p: find_runs(f"{p}/run")),
    "lease": Reader("run/lease.json", lambda p: read_holder(f"{p}/run")),
    "checkpoint": Reader(f"{CHECKPOINT}/manifest.json", read_checkpoint),
    "checkpoints of a run": Reader(f"{CHECKPOINT}/manifest.json", read_run),
    "ensemble": Reader("ensemble/ensemble.json", lambda p: Predictor.load(f"{p}/ensemble")),
    "study": Reader("study/study.json", read_study),
    "metrics of a study": Reader("study/trials/trial_000/metrics.jsonl", read_study),
    "records": Reader("records/manifest.json", read_records),
    "earlier records": Reader(f"records/{EARLIER_MANIFESTS}/earlier.json", read_earlier_records),
    "records of classes": Reader(
        "classes/records/manifest.json", lambda p: read_manifest(f"{p}/classes/records")
    ),
    "checkpoint of classes": Reader(
        f"classes/{CHECKPOINT}/manifest.json", lambda p: Predictor.load(f"{p}/classes/{CHECKPOINT}")
    ),
    "classes of an archive": Reader(CLASSES_FILE, lambda p: read_classes(f"{p}/{CLASSES_FILE}")),
    "classes with files": Reader(
        f"classes/{CLASSES_FILE}", lambda p: read_classes(f"{p}/classes/{CLASSES_FILE}")
    ),
    "rows of records": Reader("records/train-*.parquet", read_rows),
    "rejects": Reader(f"records/{REJECTS}", lambda p: read_rejects(f"{p}/records")),
    "weights": Reader(f"{CHECKPOINT}/{SEGMENTOR_FILE}", read_weights, header=True),
    "weights to resume from": Reader(f"{CHECKPOINT}/{SEGMENTOR_FILE}", resume_weights, header=True),
    "weights of any content": Reader(f"{CHECKPOINT}/{SEGMENTOR_FILE}", read_weights),
    "download to go on with": Reader("pulled/manifest.json", download),
    "model of predictions": Reader(f"masks/{MODEL_FILE}", predict_again),
    "predictions": Reader("masks/predictions.csv", lambda p: read_predictions(f"{p}/masks")),
}
LINE = {"kind": "epoch", "epoch": 1, "samples": 10, "jaccard": 0.5, "threshold": 0.4, "k": 1.0}
PREDICTION = "id,image,mask,bytes,width,height,area\na,/x/a.png,a_segmentation.png,7,20,30,11\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a valid file for every reader."""
    root, config = tmp_path_factory.mktemp("place"), small_config()
    run = Run(f"{root}/run")
    run.create_or_resume(config, "the data")
    write_metrics(
        run.uri, [LINE, {"kind": "step", "epoch": 1, "samples": 10, "learning_rate": 0.1}]
    )
    checkpoint = open_checkpoint(save_checkpoint(run, config, 1, 0.5, 0.4))
    storage.write_json(f"{root}/run/result.json", {"status": "pruned", "reason": "", "seconds": 1})
    storage.write_json(f"{root}/run/lease.json", {"host": "h", "pid": 1, "lease_id": "a"})
    write_test_ensemble(f"{root}/ensemble", [checkpoint], 0.45)
    study = Study(f"{root}/study")
    trial = study.create_or_resume(config, "the data")[0]
    write_metrics(trial.run.uri, [LINE])
    trial.mark_done(TrialStatus.FINISHED, 1)
    MetricsWriter(f"{root}/training", 0).append([LINE])
    image, mask = np.zeros((5, 7, 3), np.uint8), np.zeros((1, 5, 7), np.uint8)
    rows = [Record(f"ISIC_{number}", image, mask, (600, 450)) for number in range(3)]
    shard = write_shard(f"{root}/records", shard_prefix("train", 0, 1), rows, 5, 7, 1)
    reject = {"name": "a.jpg", "split": "train", "reason": "torn"}
    manifest = make_manifest((5, 7, 1), {"train": [shard]}, [reject], "an archive")
    write_manifest(f"{root}/records", manifest, [reject])
    storage.write_json(f"{root}/records/{EARLIER_MANIFESTS}/earlier.json", manifest.model_dump())
    names, classes = ("a", "b"), small_config(network={"width": 2, "classes": 2})
    geometry = (5, 7, 2)
    write_manifest(f"{root}/classes/records", make_manifest(geometry, {}, [], "", names), [])
    info = dataclasses.replace(
        checkpoint.info, class_names=names, config=classes.model_dump(mode="json")
    )
    save_weights(Run(f"{root}/classes/run"), classes, info)
    values = {"mask": "{id}.png", "classes": {"a": 1, "b": 2}}
    storage.write_json(f"{root}/{CLASSES_FILE}", values)
    files = {"classes": {"a": "{id}_a.png", "b": "{id}_b.png"}, "missing": "empty"}
    storage.write_json(f"{root}/classes/{CLASSES_FILE}", files)
    download(str(root))
    predict_again(str(root))
    storage.write_bytes(f"{root}/masks/predictions.csv", PREDICTION.encode())
    return str(root)


def test_valid_files_are_read(place: str) -> None:
    for reader in READERS.values():
        reader.read(place)


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 2**31, 2**63, 10**30, 60_000, 700]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "..", "../../etc/passwd", "/", "a\0b", "high", "[/b]", "\x1b[2J"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
GARBAGE = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [b"[" * 200_000, b'{"a":' * 100_000, b"[]", b"{}", b"null", b"NaN", b"1", b'"a"', b"\n\n"]
    ),
    VALUES.map(lambda value: json.dumps(value).encode()),
)


def paths_of(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items: Any = ()
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    for key, inner in items:
        yield (*prefix, key)
        yield from paths_of(inner, (*prefix, key))


def change(value: Any, path: tuple[Any, ...], new: Any, remove: bool) -> Any:
    """A copy of a JSON value with another value at `path`, or without it."""
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return changed


@st.composite
def contents(draw: st.DrawFn, valid: bytes) -> bytes:
    """The valid content with a few mistakes, or anything."""
    kind = draw(st.sampled_from(["values", "values", "values", "bytes", "garbage"]))
    if kind == "garbage":
        return draw(GARBAGE)
    try:
        document = json.loads(valid)
    except ValueError:
        document = None
    if kind == "bytes" or document is None:
        at, length = draw(st.integers(0, len(valid))), draw(st.integers(0, 30))
        return valid[:at] + draw(GARBAGE) + valid[at + length :]
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(list(paths_of(document)) or [None]))
        if path:
            document = change(document, path, draw(VALUES), draw(st.booleans()))
    if isinstance(document, dict):
        document.pop("info_sha256", None)  # else the checksum alone would be tested
    return json.dumps(document).encode()


def with_header(content: bytes, valid: bytes) -> bytes:
    """A valid safetensors file with this content in place of the JSON of its header."""
    size = 8 + int.from_bytes(valid[:8], "little")
    return len(content).to_bytes(8, "little") + content + valid[size:]


def peak_memory() -> int:
    """Bytes that this process has held at most."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@pytest.mark.parametrize("header", [b"null", b"[]", b"1", b'{"a": null}'])
def test_a_header_of_weights_that_is_no_table_is_one_error(place: str, header: bytes) -> None:
    reader = READERS["weights to resume from"]
    (file,) = Path(place).glob(reader.file)
    file.write_bytes(with_header(header, file.read_bytes()))
    with pytest.raises(SeganError):
        reader.read(place)


@pytest.mark.timeout(0 if FUZZ_EXAMPLES else 120)
@pytest.mark.parametrize("name", READERS)
def test_a_reader_of_any_content_raises_one_line_at_most(
    place: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reader = READERS[name]
    (file,) = Path(place).glob(reader.file)
    valid, count, memory = file.read_bytes(), 0, peak_memory()
    seed = valid[8 : 8 + int.from_bytes(valid[:8], "little")] if reader.header else valid

    @settings(
        max_examples=FUZZ_EXAMPLES // len(READERS) or 25,
        derandomize=not FUZZ_EXAMPLES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(contents(seed))
    def check(content: bytes) -> None:
        nonlocal count
        count += 1
        file.write_bytes(with_header(content, valid) if reader.header else content)
        try:
            reader.read(place)
        except SeganError as error:
            text = str(error)
            assert "\n" not in text, text
            assert len(text) < 2000, text

    try:
        check()
    finally:
        file.write_bytes(valid)
    extra = peak_memory() - memory
    print(f"{name}: {count} contents, {extra / 2**20:.0f} MiB above the peak before")
    assert extra <= MAX_EXTRA_MEMORY


@pytest.mark.parametrize(
    "content", [b"[" * 200_000, b"{}", b"null", b'{"config": {"training": {"epochs": "1e999"}}}']
)
def test_a_damaged_run_does_not_hide_the_others(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("first", "last"):
        Run(f"{tmp_path}/{name}").create_or_resume(small_config(), "the data")
    storage.write_bytes(f"{tmp_path}/middle/run.json", content)
    assert main(["runs", "ls", str(tmp_path)]) == 0
    shown = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()[3:]}
    assert "invalid" in shown["middle"]
    assert all("unfinished" in shown[name] for name in ("first", "last"))


def test_a_file_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(CorruptedError, match=r"run\.json: expected at most 67108864 bytes, found"):
        storage.read_json(str(path))


def write_manifest_of(checkpoint: str, **info: Any) -> None:
    """Changes the info of a checkpoint's manifest, with a valid checksum."""
    uri = f"{checkpoint}/manifest.json"
    manifest = storage.read_json(uri)
    manifest["info"] |= info
    del manifest["info_sha256"]
    storage.write_json(uri, manifest)


def test_a_network_is_not_built_before_its_weights_are_compared(tmp_path: Path) -> None:
    """One of this width would take 100 GB."""
    checkpoint = save_checkpoint(Run(str(tmp_path)), small_config(), 1, 0.5, 0.4)
    config = small_config(network={"width": 512}).model_dump(mode="json")
    write_manifest_of(checkpoint, config=config)
    with pytest.raises(CorruptedError, match="not the weights of the checkpoint's configuration"):
        Predictor.load(checkpoint)


@pytest.mark.parametrize(
    ("info", "said"),
    [
        ({"frame": {"width": 60_000, "height": 60_000}}, "less than or equal to 2048"),
        ({"frame": {"width": 90}}, "expected width and height"),
        ({"frame": {}}, "no frame in manifest.json"),
        ({"metrics": {"jaccard": "high", "threshold": 0.5}}, "jaccard"),
        ({"metrics": {"jaccard": 0.5}}, "a jaccard without its threshold"),
        ({"config": {}}, ""),
        ({"config": {"network": {"width": 0}}}, "another version of segan"),
    ],
)
def test_a_manifest_with_unusable_values_is_one_error(
    tmp_path: Path, info: dict[str, Any], said: str
) -> None:
    checkpoint = save_checkpoint(Run(str(tmp_path)), small_config(), 1, 0.5, 0.4)
    write_manifest_of(checkpoint, **info)
    with pytest.raises(SeganError) as caught:
        Predictor.load(checkpoint)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_manifest_without_weights_is_one_error(tmp_path: Path) -> None:
    checkpoint = save_checkpoint(Run(str(tmp_path)), small_config(), 1, 0.5, 0.4)
    manifest = storage.read_json(f"{checkpoint}/manifest.json")
    storage.write_json(f"{checkpoint}/manifest.json", manifest | {"files": {}})
    with pytest.raises(CorruptedError, match=r"no segmentor\.safetensors in manifest\.json"):
        Predictor.load(checkpoint)


def test_a_torn_table_of_metrics_keeps_what_can_be_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(str(tmp_path))
    write_metrics(run.uri, [LINE, LINE | {"epoch": 2}, LINE | {"epoch": 3}])
    uri = f"{run}/metrics.jsonl"
    storage.write_bytes(uri, storage.read_bytes(uri)[:-20])
    assert [line["epoch"] for line in run.metrics()] == [1, 2]
    (message,) = caplog.messages
    assert message.endswith("; 1 of 3 lines left out")
