"""`make demo KEEP=1`: the whole way, then servers that can be opened until Ctrl-C ends them all."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from infra.local.demo import RESULTS, copy_files, find_example, is_event_file, remove
from infra.local.preview import read_mask
from infra.local.supervise import descendants
from segan import storage
from segan.data.synthetic import generate_archive
from segan.errors import SeganError
from segan.runs.ensemble import read_ensemble
from tests.infra.process_utils import all_exited, listening_addresses, wait_for

TRIVIAL_JACCARD = 0.45  # the best centred ellipse has 0.41 on these images


def test_only_wanted_files_are_copied(tmp_path: Path) -> None:
    for name in ("a/events.tfevents.1", "a/b/events.tfevents.2", "a/run.json"):
        (tmp_path / "from" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "from" / name).write_text(name)
    source, out, counts = str(tmp_path / "from"), tmp_path / "to", list[int]()
    copy_files(source, out, is_event_file, counts.append)
    found = {str(p.relative_to(out)): p.read_text() for p in out.rglob("*") if p.is_file()}
    assert found == {name: name for name in ("a/events.tfevents.1", "a/b/events.tfevents.2")}
    assert counts == [1, 1]


@pytest.mark.parametrize(
    ("counts", "expected"),
    [({"validation": 1, "test": 2}, "ISIC_0000001"), ({"validation": 2}, "ISIC_0000000")],
)
def test_the_example_is_of_the_test_split_if_there_is_one(
    tmp_path: Path, counts: dict[str, int], expected: str
) -> None:
    generate(tmp_path, counts)
    assert find_example(str(tmp_path)).id == expected


def test_an_archive_with_nothing_to_score_is_an_error(tmp_path: Path) -> None:
    generate(tmp_path, {"train": 1})
    with pytest.raises(SeganError, match="expected masks in the split test or validation"):
        find_example(str(tmp_path))


def generate(folder: Path, counts: dict[str, int]) -> None:
    """A synthetic archive in a folder."""

    def write(name: str, content: bytes) -> None:
        storage.write_bytes(str(folder / name), content)

    generate_archive(counts, 0, write, short_side=32)


def test_removing_takes_files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "masks" / "a").mkdir(parents=True)
    (tmp_path / "study.html").touch()
    for name in ("masks", "study.html", "not-there"):
        remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The demo in `tmp_path`, as `make demo KEEP=1` starts it; killed after the test."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_A"))}
    with subprocess.Popen(
        [sys.executable, "-m", "infra.local.demo", "--folder", str(tmp_path), "--keep"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=inherited | {"PYTHONIOENCODING": "utf-8"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(1800)
def test_the_whole_way_and_what_stays_running(demo: subprocess.Popen[str], tmp_path: Path) -> None:
    lines = read_until(demo, "To use them in another terminal")
    text = "".join(lines)
    print(text)
    assert text.index("the first mask") < text.index("$ segan ingest"), text
    assert "pruned" in text
    check_results(tmp_path, text)

    token = (tmp_path / "ray" / "token").read_text()
    urls = dict(re.findall(r"^  (Ray dashboard|TensorBoard|page|S3 endpoint) +(\S+)", text, re.M))
    assert status(f"{urls['Ray dashboard']}/api/jobs/") == 401
    assert status(f"{urls['Ray dashboard']}/api/jobs/", token) == 200
    assert status(f"{urls['page']}/v1/model") == 401
    assert status(f"{urls['page']}/v1/model", token) == 200
    assert status(urls["S3 endpoint"]) == 403
    with urllib.request.urlopen(f"{urls['TensorBoard']}/data/runs") as response:
        assert {name.split("/")[0] for name in json.load(response)} >= {"trial_000", "trial_001"}
    pids = descendants(demo.pid)
    assert {address for address, _ in listening_addresses([demo.pid, *pids])} == {"127.0.0.1"}
    assert "AWS_ENDPOINT_URL" in (tmp_path / "environment").read_text()

    demo.send_signal(signal.SIGINT)
    assert demo.stdout is not None
    rest = demo.stdout.read()
    assert demo.wait() == 0, rest
    assert wait_for(lambda: all_exited(pids))
    assert not (tmp_path / "environment").exists()


def check_results(folder: Path, text: str) -> None:
    """The files that the demo names are there, and the ensemble is better than a trivial mask."""
    assert {*RESULTS} <= {path.name for path in folder.iterdir()}
    assert "<html" in (folder / "study.html").read_text()
    ensemble = read_ensemble(str(folder / "ensemble"))
    assert len(ensemble.members) == 3
    assert ensemble.scores["jaccard"] > TRIVIAL_JACCARD
    assert f"serve {folder}/ensemble --local" in text
    (mask,) = (folder / "masks").glob("*_segmentation.png")
    assert np.count_nonzero(read_mask(str(mask))) > 0


def read_until(process: subprocess.Popen[str], text: str) -> list[str]:
    """The lines of its output to the one with the text, which must come."""
    assert process.stdout is not None
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError("".join(lines))


def status(url: str, token: str = "") -> int:
    """The status of a GET request."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
