"""A budget of memory that concurrent requests share."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator


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
