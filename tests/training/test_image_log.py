"""Validation frames with outlines in TensorBoard."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from segan.data.records.format import Samples
from segan.runs.run import Run
from segan.training.image_log import (
    MAX_SIDE,
    MODEL_COLOR,
    NUM_FRAMES,
    TRUTH_COLOR,
    ImageLog,
    draw_outlines,
)
from segan.training.launch import train_local
from tests.training.helpers import EPOCH_END_SAMPLES, FRAME, configure


def make_samples(count: int, side: int = 16) -> Samples:
    rng = np.random.default_rng(0)
    mask = np.zeros((count, 1, side, side), np.uint8)
    mask[:, :, 4:12, 4:12] = 1
    image = rng.integers(0, 256, (count, side, side, 3), np.uint8)
    return Samples([f"ISIC_{i:07d}" for i in range(count)], image, mask)


def read_images(run: Run) -> EventAccumulator:
    folder = f"{run}/tensorboard/images"
    return EventAccumulator(folder, {"images": 0}).Reload()


def test_outlines_by_hand() -> None:
    image = np.zeros((5, 5, 3), np.uint8)
    truth, prediction = np.zeros((5, 5), bool), np.zeros((5, 5), bool)
    truth[1:4, 1:4] = True  # its outline is all but its centre
    prediction[2, 2] = True
    drawn = draw_outlines(image, truth, prediction)
    expected = image.copy()
    expected[1:4, 1:4] = TRUTH_COLOR
    expected[2, 2] = MODEL_COLOR
    np.testing.assert_array_equal(drawn, expected)


def test_a_large_frame_is_made_smaller() -> None:
    mask = np.zeros((600, 800), bool)
    mask[200:400, 200:600] = True
    drawn = draw_outlines(np.zeros((600, 800, 3), np.uint8), mask, mask)
    assert drawn.shape == (MAX_SIDE * 3 // 4, MAX_SIDE, 3)
    # Scaled by 0.4: rows 80 to 159, columns 80 to 239, one pixel wide.
    assert (drawn != 0).any(-1).sum() == 2 * 160 + 2 * (80 - 2)


def test_the_frames_are_spread_over_the_split_and_always_the_same(tmp_path: Path) -> None:
    log = ImageLog(Run(str(tmp_path)), 10)
    assert log.rows == [0, 2, 5, 8]  # 10 / 4 apart, rounded to even
    assert ImageLog(Run(str(tmp_path)), 3).rows == [0, 1, 2]
    assert ImageLog(Run(str(tmp_path)), 1).rows == [0]


def test_a_validation_is_one_bounded_file_that_a_repeated_one_replaces(tmp_path: Path) -> None:
    run, samples = Run(str(tmp_path / "run")), make_samples(9, side=512)  # noise, the worst case
    log = ImageLog(run, 9)
    for _ in range(2):
        for start in range(0, 9, 4):
            part = slice(start, start + 4)
            batch = Samples(samples.ids[part], samples.image[part], samples.mask[part])
            log.keep(batch, torch.full((len(batch.ids), 1, 512, 512), 0.6))
        log.write(64, [0.5], ["lesion"])
    (file,) = (tmp_path / "run" / "tensorboard" / "images").iterdir()
    assert file.stat().st_size < NUM_FRAMES * MAX_SIDE**2  # bytes: one a pixel
    found = read_images(run)
    assert len(found.Tags()["images"]) == NUM_FRAMES
    (event,) = found.Images("validation/ISIC_0000000")
    picture = Image.open(io.BytesIO(event.encoded_image_string))
    assert (event.step, picture.format, picture.size) == (64, "JPEG", (MAX_SIDE, MAX_SIDE))


def test_each_of_several_classes_has_an_image_of_its_own(tmp_path: Path) -> None:
    samples = make_samples(2)
    samples = replace(samples, mask=samples.mask.repeat(2, axis=1))
    log = ImageLog(Run(str(tmp_path / "run")), 2, 2)
    log.keep(samples, torch.full((2, 2, 16, 16), 0.4))
    log.write(8, [0.5, 0.3], ["a", "b"])
    found = read_images(Run(str(tmp_path / "run")))
    assert sorted(found.Tags()["images"]) == [
        f"validation/ISIC_000000{i}/{name}" for i in range(2) for name in "ab"
    ]


def test_many_classes_are_of_fewer_frames(tmp_path: Path) -> None:
    for classes, frames in ((1, 4), (7, 2), (50, 1)):
        assert len(ImageLog(Run(str(tmp_path)), 9, classes).rows) == frames


def test_each_validation_of_a_training_has_its_frames(records: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path / "run"))
    train_local(configure(records), run)
    found = read_images(run)
    assert len(found.Tags()["images"]) == 3  # all there are
    for tag in found.Tags()["images"]:
        events = found.Images(tag)
        assert [event.step for event in events] == [*EPOCH_END_SAMPLES.values()]
        assert {(event.width, event.height) for event in events} == {FRAME}
