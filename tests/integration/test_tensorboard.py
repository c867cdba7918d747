"""TensorBoard on a study in a bucket, with nothing but the AWS variables."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.local.processes import free_ports
from segan.data.records.format import Samples
from segan.runs.run import Run
from segan.training.image_log import ImageLog
from segan.training.metrics_log import write_hyperparameters

pytestmark = pytest.mark.integration

ATTEMPTS = 400


class TensorBoard:
    def __init__(self, url: str):
        self.url = url

    def get(self, path: str, **query: Any) -> Any:
        """The JSON answer of a plugin; None while there is no answer."""
        data = json.dumps(query).encode() if query else None
        request = urllib.request.Request(
            f"{self.url}/data/plugin/{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except OSError:
            return None

    def wait_for(self, path: str, **query: Any) -> Any:
        for _ in range(ATTEMPTS):
            if found := self.get(path, **query):
                return found
            time.sleep(0.2)
        raise AssertionError(f"TensorBoard says nothing at {path}")


@pytest.fixture
def tensorboard(bucket: str, tmp_path: Path) -> Iterator[TensorBoard]:
    """TensorBoard on the trials of a study in the bucket, which has one trial."""
    run = Run(f"{bucket}/study/trials/trial_000")
    write_hyperparameters(run, {"optimizer.learning_rate": 0.002}, {"jaccard": 0.625})
    frames = Samples(
        ["ISIC_0000001"], np.zeros((1, 64, 64, 3), np.uint8), np.zeros((1, 1, 64, 64), np.uint8)
    )
    image_log = ImageLog(run, 1)
    image_log.keep(frames, torch.ones(1, 1, 64, 64))
    image_log.write(64, [0.5], ["lesion"])
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", f"{bucket}/study/trials"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=log, stderr=log, env={**os.environ}
        )
    try:
        yield TensorBoard(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()
        print((tmp_path / "log").read_text())


def test_scalars_images_and_hparams_are_read_from_the_bucket(tensorboard: TensorBoard) -> None:
    scalars = tensorboard.wait_for("scalars/tags")
    assert list(scalars) == ["trial_000/tensorboard"]
    assert "jaccard" in scalars["trial_000/tensorboard"]
    images = tensorboard.wait_for("images/tags")
    assert [*images["trial_000/tensorboard/images"]] == ["validation/ISIC_0000001"]
    experiment = tensorboard.wait_for("hparams/experiment", experimentName="")
    assert [info["name"] for info in experiment["hparamInfos"]] == ["optimizer.learning_rate"]
