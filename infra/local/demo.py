"""A demonstration of all steps on this machine: data, a first mask, study, ensemble, scores, masks.

    python -m infra.local.demo [--data ARCHIVE] [--folder DIR] [--keep]

Starts an S3 server and a Ray head, runs the commands that a user would type, and stops both; with
--keep it leaves them running, with their dashboards, until Ctrl-C. The commands run in this
process, so that Python, torch and Ray are loaded once. Without --data it generates synthetic
images.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

from infra.local.cluster import RayCluster, ray_cluster
from infra.local.keep import keep_running
from infra.local.preview import draw_masks, jaccard, read_mask
from infra.local.s3 import S3Server, s3_server
from segan import storage
from segan.cli.console import echo, progress_bar
from segan.cli.main import EXIT_INTERRUPTED
from segan.cli.main import main as run_command
from segan.data.archive.pairs import Pair
from segan.data.archive.reader import open_archive
from segan.errors import SeganError

BUCKET = "s3://segan-demo"
# Logical CPUs: two trials at a time with two workers each, and the rest is for reading data.
NUM_CPUS = 6
SYNTHETIC = "--train 250 --validation 40 --test 40 --short-side 160"
MODEL = "isic2017"  # ships with segan, and draws the first mask while Ray starts
RESULTS = ("first", "masks", "ensemble", "tensorboard", "study.html")  # in the demo's folder


class CommandFailedError(SeganError):
    """A command of the demo has failed, and has said why."""

    def __init__(self, exit_code: int):
        super().__init__(
            "interrupted"
            if exit_code == EXIT_INTERRUPTED
            else f"the command above failed with exit code {exit_code}"
        )
        self.exit_code = exit_code


def main() -> int:
    """Returns the exit code, which is 0 if all commands succeed."""
    parser = argparse.ArgumentParser(prog="python -m infra.local.demo", description=__doc__)
    parser.add_argument("--data", type=Path, help="archive; default: synthetic images")
    parser.add_argument(
        "--folder", type=Path, default=Path("demo"), help="for all files; default: demo"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the servers running until Ctrl-C"
    )
    arguments = parser.parse_args()
    try:
        with run_servers(arguments.folder) as (server, starting):
            Demo(arguments.folder, server, starting).run(arguments.data, arguments.keep)
    except KeyboardInterrupt:
        echo("demo: interrupted")
        return EXIT_INTERRUPTED
    except SeganError as error:
        echo(f"demo: {error}")
        return error.exit_code
    return 0


@contextmanager
def run_servers(folder: Path) -> Iterator[tuple[S3Server, Future[RayCluster]]]:
    """Runs the S3 server during the block, and a Ray head, which is still starting at first."""
    with ExitStack() as stack:
        server = stack.enter_context(s3_server(folder / "s3"))
        server.create_bucket(BUCKET.removeprefix("s3://"))
        os.environ.update(server.environment)

        # Ray warns about more workers than four times this, by default the number of cores.
        limits = {"RAY_worker_maximum_startup_concurrency": str(NUM_CPUS)}

        def start_cluster() -> RayCluster:
            environment = server.environment | limits
            return stack.enter_context(ray_cluster(folder / "ray", NUM_CPUS, environment))

        pool = stack.enter_context(ThreadPoolExecutor(1))
        starting = pool.submit(start_cluster)
        try:
            yield server, starting
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                # A second Ctrl-C must not interrupt the shutdown.
                signal.signal(number, signal.SIG_IGN)


@contextmanager
def driver_of(cluster: RayCluster) -> Iterator[None]:
    """Lets commands of this process join the cluster; leaves it after the block."""
    os.environ.pop("RAY_AUTH_TOKEN", None)  # another cluster's; it would go before the file
    os.environ.update(cluster.environment)
    import ray  # which reads these variables when it is imported

    try:
        yield
    finally:
        ray.shutdown()  # a driver whose cluster ends first is aborted


class Demo:
    """The steps of the demo, under a new prefix of the bucket."""

    def __init__(self, folder: Path, server: S3Server, starting: Future[RayCluster]):
        self.folder, self.server, self.starting = folder, server, starting
        self.began = time.monotonic()
        root = f"{BUCKET}/{time.strftime('%Y%m%dT%H%M%S')}"
        self.archive, self.records = f"{root}/archive", f"{root}/records/demo"
        self.study, self.ensemble = f"{root}/studies/demo", f"{root}/ensembles/demo"

    def run(self, data: Path | None, keep: bool) -> None:
        """Runs all steps; with `keep` it returns when a signal comes."""
        for name in RESULTS:
            remove(self.folder / name)
        if data is None:
            self.segan(f"synth {self.archive} {SYNTHETIC}")
        else:
            upload_archive(data, self.archive)
        example = find_example(self.archive)
        self.make_first_mask(example)
        self.segan(f"ingest {self.archive} {self.records} --local")
        cluster = self.starting.result()
        echo(f"\nS3 server {self.server.endpoint}, Ray dashboard {cluster.dashboard}")
        with driver_of(cluster):
            self.search()
            self.score(example)
            self.show_results()
            if keep:
                keep_running(self.folder, self.server, cluster, self.study)

    def segan(self, command: str) -> None:
        """Runs a command as the program `segan` would, after a line with it and the time so far."""
        echo(f"\n{self.elapsed()}  $ segan {command}")
        if exit_code := run_command(shlex.split(command)):
            raise CommandFailedError(exit_code)

    def elapsed(self) -> str:
        """Minutes and seconds since the servers started."""
        return str(timedelta(seconds=round(time.monotonic() - self.began))).removeprefix("0:")

    def make_first_mask(self, example: Pair) -> None:
        """Draws what the model that ships with segan predicts."""
        self.segan(f"predict {MODEL} {example.image} {self.folder / 'first'} --local")
        echo(f"\n{self.elapsed()}  the first mask, of {example.id} by the model of the package:")
        self.draw(example, **{MODEL: self.folder / "first"})

    def search(self) -> None:
        """Runs the study and builds the ensemble; copies both reports and the events."""
        self.segan(f"tune {self.study} --config demo data.records={self.records}")
        self.segan(f"ensemble build --study {self.study} --out {self.ensemble}")
        copy_files(self.ensemble, self.folder / "ensemble")
        report = storage.read_bytes(f"{self.study}/report.html")
        storage.write_bytes(str(self.folder / "study.html"), report)
        copy_files(f"{self.study}/trials", self.folder / "tensorboard", is_event_file)

    def score(self, example: Pair) -> None:
        """Scores the ensemble, and draws its mask of the example beside the first one."""
        self.segan(f"evaluate {self.ensemble} {self.archive} --split {example.split} --local")
        self.segan(f"predict {self.ensemble} {example.image} {self.folder / 'masks'} --local")
        echo("")
        self.draw(example, **{MODEL: self.folder / "first", "ensemble": self.folder / "masks"})

    def draw(self, example: Pair, **folders: Path) -> None:
        """Draws the example's predicted masks, by their titles, and the true one."""
        assert example.mask is not None, "a pair of a split with scores has a mask"
        truth = read_mask(example.mask)
        predicted = {
            title: read_mask(storage.join(str(folder), f"{example.id}_segmentation.png"))
            for title, folder in folders.items()
        }
        masks = {f"{t}, Jaccard {jaccard(mask, truth):.2f}": mask for t, mask in predicted.items()}
        echo(draw_masks(masks | {"true": truth}, sys.stderr.encoding))
        for folder in folders.values():
            echo(f"{folder}/{example.id}_segmentation.png")

    def show_results(self) -> None:
        """Says what to open and how to go on."""
        program = Path(sys.executable).with_name("segan")
        if program.is_relative_to(Path.cwd()):
            program = program.relative_to(Path.cwd())
        echo(
            f"\ndone after {self.elapsed()}. To open:\n"
            f"  {self.folder}/study.html              the search: trials, curves\n"
            f"  {self.folder}/ensemble/report.html    the ensemble: scores, best and worst cases\n"
            f"  {self.folder}/masks                   its mask of the image above\n"
            "To go on, a page on 127.0.0.1 that segments your own images:\n"
            f"  {program} serve {self.folder}/ensemble --local"
        )


def find_example(archive: str) -> Pair:
    """The first pair with a mask of the test split, or of the validation split if it has none."""
    pairs = [pair for pair in open_archive(archive).pairs if pair.mask]
    for split in ("test", "validation"):
        if found := [pair for pair in pairs if pair.split == split]:
            return min(found, key=lambda pair: pair.id)
    raise SeganError(f"{archive}: expected masks in the split test or validation, found none")


def remove(path: Path) -> None:
    """Deletes a file or folder of an earlier demo, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def upload_archive(folder: Path, out: str) -> None:
    """Copies a local archive into the bucket."""
    source = storage.normalise(str(folder))
    total = len(storage.list_files(source))
    if not total:
        raise SeganError(f"{folder}: expected an archive, found no files")
    with progress_bar(f"copying to {out}", total) as advance:
        copy_files(source, out, on_progress=advance)


def is_event_file(name: str) -> bool:
    """Whether TensorBoard reads a file of this name."""
    return "tfevents" in name


def copy_files(
    source: str,
    out: str | Path,
    wanted: Callable[[str], bool] = lambda name: True,
    on_progress: Callable[[int], None] = lambda number: None,
) -> None:
    """Copies the files below a URI whose names are wanted, eight at a time.

    Args:
        wanted: called with a name relative to `source`.
        on_progress: called with the number of files that were copied since the last call.
    """

    def copy_file(name: str) -> None:
        content = storage.read_bytes(storage.join(source, name))
        storage.write_bytes(storage.join(str(out), name), content)

    names = [file.name for file in storage.list_files(source) if wanted(file.name)]
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(copy_file, names):
            on_progress(1)


if __name__ == "__main__":
    sys.exit(main())
