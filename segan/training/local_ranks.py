"""The ranks of a training as processes of this machine; rank 0 is this process.

So a debugger, a `breakpoint()` and the terminal's keyboard are those of rank 0, and Ctrl-C reaches
rank 0 alone, which stops the others with it. The other ranks get torchrun's environment variables.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch.multiprocessing.spawn import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    start_processes,
)

from segan.errors import SeganError
from segan.training.distributed import process_group, use_loopback

JOIN_INTERVAL_S = 0.1
FAILURE_TIMEOUT_S = 5.0  # for a rank whose end broke a collective here to be seen as ended


@contextlib.contextmanager
def local_ranks(world_size: int, follow: Callable[..., object], *args: Any) -> Iterator[None]:
    """Initialises a process group of which this process is rank 0.

    Args:
        follow: what each of the other ranks calls, in a new process; a function of a module.
        args: of `follow`.

    Raises:
        SeganError: another rank failed. An error of this rank is raised as it is.
    """
    with tempfile.TemporaryDirectory() as name, _environment(_variables(0, world_size)):
        folder = Path(name)
        if world_size > 1:
            use_loopback()
        others = start_processes(
            _run_rank,
            (world_size, folder, follow, args),
            nprocs=world_size - 1,
            join=False,
            daemon=True,
            start_method="spawn",
        )
        try:
            while not all(_ready_file(folder, rank).exists() for rank in range(1, world_size)):
                others.join(timeout=JOIN_INTERVAL_S)  # raises if one has ended
            with process_group(folder / "store", 0, world_size):
                yield
            while not others.join(timeout=JOIN_INTERVAL_S):
                pass
        except (ProcessExitedException, ProcessRaisedException) as error:
            raise _rank_error(error) from None
        except RuntimeError as error:
            if not isinstance(error, SeganError) and (cause := _find_failure(others)):
                raise cause from error  # a collective found the other end gone
            raise
        finally:
            for process in others.processes:
                process.kill()


def _run_rank(
    index: int,
    world_size: int,
    folder: Path,
    follow: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all ranks
    rank = index + 1
    os.environ.update(_variables(rank, world_size))
    _ready_file(folder, rank).touch()
    with process_group(folder / "store", rank, world_size):
        follow(*args)


def _find_failure(others: ProcessContext) -> SeganError | None:
    """The error of a rank that has failed, or is about to end for the same reason as this one."""
    try:
        others.join(timeout=FAILURE_TIMEOUT_S)
    except (ProcessExitedException, ProcessRaisedException) as error:
        return _rank_error(error)
    return None


def _rank_error(error: ProcessExitedException | ProcessRaisedException) -> SeganError:
    """How a rank ended: by a signal, by an exit code, or with the last line of its traceback."""
    rank = error.error_index + 1
    if isinstance(error, ProcessExitedException):
        how = error.signal_name or f"exit code {error.exit_code}"
        return SeganError(f"rank {rank} was ended by {how}; run the same command to resume")
    return SeganError(f"rank {rank}: {str(error).strip().splitlines()[-1]}")


def _variables(rank: int, world_size: int) -> dict[str, str]:
    """What torchrun sets for a rank on a single node."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
    }


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _ready_file(folder: Path, rank: int) -> Path:
    return folder / f"rank{rank}.ready"
