"""Memory that concurrent requests share: they wait for it, or are refused it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator

from fastapi import HTTPException


class MemoryBudget:
    """Bytes that are reserved and given back; requests wait in the order of their arrival."""

    def __init__(self, total_bytes: int):
        self.total_bytes = self.free_bytes = total_bytes
        self._turn = asyncio.Lock()  # of the one that waits for bytes, so that small ones queue too
        self._released = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def reserve(self, size: int) -> AsyncIterator[None]:
        """Holds `size` bytes, or all if that is more, while the block runs."""
        size = min(size, self.total_bytes)
        async with self._turn, self._released:
            await self._released.wait_for(lambda: self.free_bytes >= size)
            self.free_bytes -= size
        try:
            yield
        finally:
            async with self._released:
                self.free_bytes += size
                self._released.notify_all()


class UploadMemory:
    """The bytes of all uploads that are being received or used, at most `total_bytes`."""

    def __init__(self, total_bytes: int):
        self.total_bytes, self.held_bytes = total_bytes, 0

    @contextlib.contextmanager
    def hold(self) -> Iterator[Callable[[int], None]]:
        """Yields the function that counts the bytes of one upload, until the block ends.

        It raises HTTPException with status 503 if they are too many. To wait for memory would
        stop all uploads when each of them holds a part and waits for the rest.
        """
        held = 0

        def add(size: int) -> None:
            nonlocal held
            if self.held_bytes + size > self.total_bytes:
                raise HTTPException(503, "too many large uploads at once; try again later")
            self.held_bytes += size
            held += size

        try:
            yield add
        finally:
            self.held_bytes -= held
