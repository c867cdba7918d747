"""A served model under concurrent requests, and a clean exit of the command."""

from __future__ import annotations

import io
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from segan.inference.predictor import Predictor
from tests.browser.conftest import TOKEN
from tests.browser.server import Server, running_server

pytestmark = pytest.mark.cluster

REQUESTS = 24
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


def random_image(seed: int) -> Image.Image:
    """An image with a size of its own, so that responses cannot be mistaken for each other."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((120 + seed, 90 + seed), Image.Resampling.BICUBIC)


def encode_png(image: Image.Image) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "PNG")
    return sink.getvalue()


def test_concurrent_requests_get_their_own_masks(server: Server, model: str) -> None:
    images = [random_image(seed) for seed in range(REQUESTS)]

    def segment(image: Image.Image) -> requests.Response:
        url = f"{server.address}/v1/segment"
        return requests.post(url, encode_png(image), headers=HEADERS, timeout=60)

    with ThreadPoolExecutor(REQUESTS) as threads:
        answers = list(threads.map(segment, images))
    assert [answer.status_code for answer in answers] == [200] * REQUESTS
    predictor = Predictor.load(model)
    for image, answer in zip(images, answers, strict=True):
        mask = np.asarray(Image.open(io.BytesIO(answer.content)))
        np.testing.assert_array_equal(mask, predictor(image).mask * np.uint8(255))


def test_a_damaged_image_does_not_affect_other_requests(server: Server) -> None:
    bodies = [encode_png(random_image(seed)) for seed in range(8)]
    bodies[3] = bodies[3][:-200]
    url = f"{server.address}/v1/segment"
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = threads.map(lambda b: requests.post(url, b, headers=HEADERS, timeout=60), bodies)
        codes = [answer.status_code for answer in answers]
    assert codes == [200, 200, 200, 422, 200, 200, 200, 200]


def slow_jpeg(scans: int) -> bytes:
    """79 megapixels and few bytes: a progressive JPEG whose last scans have nothing in them."""
    sink = io.BytesIO()
    Image.new("L", (8900, 8900)).save(sink, "JPEG", progressive=True)
    content = sink.getvalue()
    start, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + scans * content[start:end] + content[end:]


def hostile_uploads() -> list[bytes]:
    """A JPEG of too many scans, a large PNG of one colour, and a JPEG that takes long to decode."""
    sink = io.BytesIO()
    Image.new("RGB", (8900, 8900), (200, 150, 120)).save(sink, "PNG")
    return [slow_jpeg(2000), sink.getvalue(), slow_jpeg(90)]


@pytest.mark.slow
def test_hostile_uploads_do_not_hold_up_ordinary_requests(server: Server) -> None:
    """As many as there are CPUs, several times over, among requests that are all answered."""
    hostile = hostile_uploads() * 2
    ordinary = [encode_png(random_image(seed)) for seed in range(REQUESTS)]

    def segment(body: bytes) -> int:
        url = f"{server.address}/v1/segment?format=json"
        return requests.post(url, body, headers=HEADERS, timeout=100).status_code

    with ThreadPoolExecutor(len(hostile) + 4) as pool:
        attacks = [pool.submit(segment, body) for body in hostile]
        codes = list(pool.map(segment, ordinary))
        assert codes == [200] * REQUESTS
        attacked = [attack.result() for attack in attacks]
    assert attacked[::3] == [422] * 2
    assert set(attacked) <= {200, 408, 422}
    assert requests.get(f"{server.address}/healthz", timeout=10).status_code == 200


@contextmanager
def slow_bodies(server: Server, count: int) -> Iterator[None]:
    """Requests that announce a megabyte and send three bytes of it."""
    host, port = server.address.removeprefix("http://").split(":")
    head = f"POST /v1/segment HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {TOKEN}\r\n"
    with ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.create_connection((host, int(port)), 10))
            connection.sendall(f"{head}Content-Length: 1000000\r\n\r\nabc".encode())
        yield


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_hundred_requests_among_hostile_uploads_and_slow_bodies(server: Server) -> None:
    """All are answered within the server's limit for a request, and so are health checks."""
    hostile = hostile_uploads() * 3
    ordinary = [encode_png(random_image(seed)) for seed in range(200)]

    def request(path: str, body: bytes | None = None) -> tuple[int, float]:
        method, url = "GET" if body is None else "POST", f"{server.address}{path}"
        answer = requests.request(method, url, data=body, headers=HEADERS, timeout=200)
        return answer.status_code, answer.elapsed.total_seconds()

    def segment(body: bytes) -> tuple[int, float]:
        return request("/v1/segment?format=json", body)

    checks = []
    with slow_bodies(server, 100), ThreadPoolExecutor(len(ordinary) + len(hostile)) as pool:
        attacks = [pool.submit(segment, body) for body in hostile]
        answers = [pool.submit(segment, body) for body in ordinary]
        while not all(answer.done() for answer in answers):
            checks.append(request("/healthz"))
            time.sleep(0.5)
        codes, seconds = zip(*(answer.result() for answer in answers), strict=True)
        attacked = [attack.result()[0] for attack in attacks]
    print(
        "ordinary, s: p50 {:.1f}, p90 {:.1f}, p100 {:.1f}".format(
            *np.percentile(seconds, [50, 90, 100])
        )
    )
    print(f"{len(checks)} health checks, longest {max(s for _, s in checks):.1f} s")
    assert set(codes) == {200}
    assert {code for code, _ in checks} == {200}
    assert attacked[::3] == [422] * 3
    assert set(attacked) <= {200, 408, 422}


def test_health_checks_need_no_token_and_the_api_does(server: Server) -> None:
    for path in ("healthz", "readyz"):
        assert requests.get(f"{server.address}/{path}", timeout=10).text == "ok\n"
    assert requests.get(f"{server.address}/v1/model", timeout=10).status_code == 401
    model_info = requests.get(f"{server.address}/v1/model", headers=HEADERS, timeout=10).json()
    assert (model_info["threshold"], model_info["num_members"]) == (0.485, 3)


def test_it_listens_on_loopback_alone(server: Server) -> None:
    """So does its Ray, whose processes are its children."""
    processes = [psutil.Process(server.process.pid)]
    processes += processes[0].children(recursive=True)
    listening = {
        connection.laddr.ip.removeprefix("::ffff:")  # of an IPv4 address on an IPv6 socket
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_only_the_user_can_read_the_token_of_its_ray(server: Server) -> None:
    assert stat.S_IMODE((server.home / ".ray" / "auth_token").stat().st_mode) == 0o600


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_all_its_processes(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    short = Path(tempfile.mkdtemp(prefix="s", dir="/tmp"))  # Ray's sockets lie below it
    monkeypatch.setenv("TMPDIR", str(short))
    with running_server(model, tmp_path / "log", TOKEN) as server:
        processes = psutil.Process(server.process.pid).children(recursive=True)
        assert processes
        assert server.interrupt(signum) == 0
        assert server.process.stderr is not None
        left = server.process.stderr.read()
    assert "stopping" in left
    assert "*** SIGTERM" not in left
    assert "Traceback" not in left
    assert [path for path in short.iterdir() if path.name.startswith("segan-")] == []
    shutil.rmtree(short)
    _, alive = psutil.wait_procs(processes, 20)
    assert alive == []
    with socket.socket() as probe:
        port = int(server.address.rsplit(":", 1)[1])
        assert probe.connect_ex(("127.0.0.1", port)) != 0
