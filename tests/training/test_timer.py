"""Times by stage."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from segan.training.timer import Stage, StageTimer

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def test_seconds_are_added_up_until_they_are_taken() -> None:
    timer = StageTimer(torch.device("cpu"))
    timer.add(Stage.UPLOAD, 1.5)
    timer.add(Stage.CRITIC, 0.25)
    timer.add(Stage.UPLOAD, 2.0)
    assert list(timer.take().items()) == [("critic", 0.25), ("upload", 3.5)]
    assert timer.take() == {}


def test_blocks_are_timed_in_any_thread() -> None:
    timer = StageTimer(torch.device("cpu"))

    def upload(_: int) -> None:
        with timer.stage(Stage.UPLOAD):
            timer.add(Stage.SNAPSHOT, 1.0)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(upload, range(400)))
    found = timer.take()
    assert found["snapshot"] == 400
    assert found["upload"] >= 0


def test_a_block_that_fails_is_not_counted() -> None:
    timer = StageTimer(torch.device("cpu"))
    with pytest.raises(ValueError, match="lost"), timer.stage(Stage.RESTORE):
        raise ValueError("lost")
    assert timer.take() == {}


@needs_cuda
def test_on_cuda_queued_work_is_timed_on_the_device() -> None:
    device = torch.device("cuda", 0)
    timer, matrix = StageTimer(device), torch.ones(4096, 4096, device=device)
    with timer.stage(Stage.CRITIC):
        for _ in range(50):  # 6.9 TFLOP: a device needs milliseconds, the host far less to queue
            matrix @ matrix
    assert timer.take()["critic"] > 0.002
