"""Memory that concurrent requests share."""

from __future__ import annotations

import asyncio

import pytest
from fastapi import HTTPException

from ray_jobs.serving.budget import MemoryBudget, UploadMemory


def test_requests_hold_no_more_than_the_total_and_keep_their_order() -> None:
    budget, held, most, order = MemoryBudget(10), 0, 0, list[int]()

    async def request(number: int, size: int) -> None:
        nonlocal held, most
        async with budget.reserve(size):
            order.append(number)
            held += min(size, 10)
            most = max(most, held)
            await asyncio.sleep(0.001)
            held -= min(size, 10)

    async def run() -> None:
        sizes = [4, 5, 10, 1, 99, 3, 3, 3, 3]
        await asyncio.gather(*(request(number, size) for number, size in enumerate(sizes)))

    asyncio.run(run())
    assert most == 10
    assert order == sorted(order)
    assert budget.free_bytes == 10


def test_a_failed_or_cancelled_request_gives_its_bytes_back() -> None:
    budget = MemoryBudget(10)

    async def fail() -> None:
        async with budget.reserve(7):
            raise ValueError

    async def wait() -> None:
        async with budget.reserve(7):
            await asyncio.sleep(60)

    async def run() -> None:
        await asyncio.gather(fail(), return_exceptions=True)
        holding = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        assert budget.free_bytes == 3
        for task in (waiting, holding):
            task.cancel()
        await asyncio.gather(holding, waiting, return_exceptions=True)
        async with budget.reserve(10):
            pass

    asyncio.run(run())
    assert budget.free_bytes == 10


def test_uploads_beyond_the_total_are_refused_and_give_their_bytes_back() -> None:
    uploads = UploadMemory(10)
    with uploads.hold() as first:
        first(6)
        with uploads.hold() as second:
            second(4)
            with pytest.raises(HTTPException, match="503: too many large uploads"):
                second(1)
        assert uploads.held_bytes == 6
        with uploads.hold() as third:
            third(4)
    assert uploads.held_bytes == 0
