"""A test ensemble, and `segan serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.local.processes import free_ports
from segan.runs.checkpoint import Checkpoint
from segan.runs.ensemble import Ensemble, describe_member, write_ensemble


@dataclass
class Server:
    address: str
    process: subprocess.Popen[str]
    home: Path

    def interrupt(self, signum: int = signal.SIGINT) -> int:
        """Sends a signal; returns the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(60)


def write_test_ensemble(uri: str, checkpoints: Sequence[Checkpoint], threshold: float) -> None:
    """Writes an ensemble of these checkpoints."""
    first = checkpoints[0]
    scores = {"accuracy": 0.5, "dice": 0.5, "jaccard": 0.5}
    for checkpoint in checkpoints:
        checkpoint.info.metrics.update(scores | checkpoint.info.metrics)
    frame = {"width": first.frame_size[0], "height": first.frame_size[1]}
    ensemble = Ensemble(
        members=tuple(map(describe_member, checkpoints)),
        threshold=threshold,
        scores=scores,
        jaccard_curve=(0.5,),
        rule="best",
        choices={},
        candidates={},
        records="",
        fingerprint="",
        splits={},
        train_split="train",
        validation_split="validation",
        frame=frame,
        classes=1,
    )
    write_ensemble(uri, ensemble, checkpoints, "a card")


@contextmanager
def running_server(model: str, log: Path, token: str = "", *options: str) -> Iterator[Server]:
    """Runs `segan serve MODEL --local` on a free port during the block."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "segan", "serve", model, "--local", "--port", str(port)]
    # A user's environment, without the variables that keep the tests' Ray on loopback.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    home = log.parent / "home"
    home.mkdir(exist_ok=True)
    environment |= {
        **({"SEGAN_SERVE_TOKEN": token} if token else {}),
        "HOME": str(home),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *options],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        with process:
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    output.write(line)
                    if line.startswith("http://"):
                        break
                else:
                    raise AssertionError(f"segan serve has ended: see {log}")
                yield Server(f"http://127.0.0.1:{port}", process, home)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                process.wait(60)
