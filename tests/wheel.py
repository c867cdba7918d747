"""Builds the wheel and uses it outside the checkout: every stage from images to a served model.

    python tests/wheel.py --python python3.13 --folder DIR    # installs it into a new environment

This file needs only the standard library; `tests/infra/test_wheel.py` runs the same commands on an
unpacked wheel. Commands run in DIR, whose path must be short: Ray's sockets lie below it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("segan", "ray_jobs", "pyproject.toml", "README.md", "LICENSE")
SMALL = (
    "network.width=2",
    "augment.crop=64",
    "training.batch_size=4",
    "training.epochs=1",
    "cluster.workers=1",
    "cluster.cpus_per_worker=0.45",  # with a CPU for reading data, a study fits on two
)
START_TIMEOUT_S = 300.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--python", default=sys.executable, help="interpreter of the environment")
    parser.add_argument("--folder", type=Path, required=True, help="new or empty; kept")
    parser.add_argument("--environment", type=Path, help="default: DIR/environment, made if absent")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = build_wheel(folder, [arguments.python, "-m", "pip"])
    environment = arguments.environment or folder / "environment"
    if not environment.exists():
        subprocess.run([arguments.python, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt"]
    subprocess.run([*pip, f"{wheel}[serve]"], check=True)
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    use_every_stage([environment / "bin" / "segan"], folder / "work", variables)
    print(f"{wheel.name}: every stage works in {environment}")
    return 0


def build_wheel(folder: Path, pip: Sequence[str], *options: str) -> Path:
    """Builds the wheel from a copy of the sources, so that nothing left over gets into it."""
    copy = folder / "source"
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, copy / name, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    words = [*pip, "wheel", "--quiet", "--no-deps", *options, "--wheel-dir", folder, copy]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("segan-*.whl")
    return wheel


def use_every_stage(
    segan: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> None:
    """Runs the commands in `folder` and checks what they leave.

    Args:
        segan: the words that start the command.
        environment: of the commands, without a Ray cluster to join.

    Raises:
        subprocess.CalledProcessError: a command failed.
        AssertionError: a command did not do what it should.
    """
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **environment,
        "HOME": str(folder),  # Ray writes a token there
        "RAY_TMPDIR": str(folder),
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
    }

    def run(words: str, *more: str) -> str:
        print(f"$ segan {words}", *more, flush=True)
        done = subprocess.run(
            [*segan, *words.split(), *more],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        return done.stdout

    paper: dict[str, Any] = json.loads(run("config --config paper --json"))
    assert paper["training"]["epochs"] == 300, paper["training"]
    run("synth ./archive --train 8 --validation 4 --test 3 --short-side 64")
    run("ingest ./archive ./records --local --width 72 --height 64")
    run("train ./run --local --config demo data.records=./records", *SMALL)
    run("tune ./study --config demo data.records=./records search.trials=2", *SMALL)
    run("predict ./run ./archive/ISIC-2017_Test_v2_Data ./masks --local")
    masks = sorted((folder / "masks").glob("*.png"))
    assert len(masks) == 3, masks
    for report in ("run", "study"):
        assert (folder / report / "report.html").is_file(), f"no report of {report}"
    assert "run" in run("runs ls .")
    serve_once(segan, folder, environment)


def serve_once(segan: Sequence[str | Path], folder: Path, environment: Mapping[str, str]) -> None:
    """Serves the run in `folder`, asks for its page and a mask, and stops the server by Ctrl-C."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    print(f"$ segan serve ./run --local --port {port}", flush=True)
    # A shell's background job ignores SIGINT, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    words = [*segan, "serve", "./run", "--local", "--port", str(port)]
    server = subprocess.Popen(words, cwd=folder, env=environment)
    try:
        image = next((folder / "archive" / "ISIC-2017_Test_v2_Data").glob("*.jpg"))
        _use_server(server, f"http://127.0.0.1:{port}", image.read_bytes())
        server.send_signal(signal.SIGINT)
        assert server.wait(120) == 0, f"serve ended with {server.returncode}"
    finally:
        if server.poll() is None:
            server.terminate()
            server.wait()


def _use_server(server: subprocess.Popen[bytes], url: str, image: bytes) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            page = urllib.request.urlopen(url).read().decode()
            break
        except (urllib.error.URLError, ConnectionError):
            assert server.poll() is None, f"serve ended with {server.returncode}"
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)
    assert "<title>" in page, page
    request = urllib.request.Request(
        f"{url}/v1/segment", image, {"Content-Type": "image/jpeg", "Accept": "image/png"}
    )
    mask = urllib.request.urlopen(request).read()
    assert mask.startswith(b"\x89PNG"), mask[:100]


if __name__ == "__main__":
    sys.exit(main())
