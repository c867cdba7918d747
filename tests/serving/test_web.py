"""The HTTP API of a real model in memory, over HTTP and without Ray."""

from __future__ import annotations

import contextlib
import http.client
import io
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import requests
import uvicorn
from PIL import Image

from infra.local.processes import free_ports
from ray_jobs.serving import api
from ray_jobs.serving.api import MAX_BYTES, describe_model
from ray_jobs.serving.auth import TOKEN_VARIABLE, configured_token_digest, digest
from ray_jobs.serving.deployment import build
from ray_jobs.serving.web import create_app
from segan.cli.commands.serve import LOOPBACK_HOSTS
from segan.cli.main import main
from segan.data.archive.images import decode_image
from segan.errors import UsageError
from segan.inference.predictor import Predictor
from segan.inference.upload import encode_preview
from segan.inference.view import ImageSegmentation
from segan.runs.run import Run
from tests.inference.models import save_checkpoint, small_config, untrained_predictor

SECRET = "a token long enough"
predictor = untrained_predictor()


async def run_in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


@contextlib.contextmanager
def running_app(
    token: str, hosts: Sequence[str] = (), model: Predictor = predictor
) -> Iterator[str]:
    """Serves the application on a free port; yields its address."""

    @contextlib.asynccontextmanager
    async def segment_image(
        name: str, content: bytes, with_preview: bool
    ) -> AsyncIterator[ImageSegmentation]:
        image = decode_image(name, content)
        maps = model.predict_proba(model.preprocess(image)[None])[0]
        preview = encode_preview(image) if with_preview else ""
        yield ImageSegmentation(model, maps, image.size, preview)

    app = create_app(segment_image, run_in_thread, describe_model(model), token, hosts)
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with running_app("") as found:
        yield found


@pytest.fixture(scope="module")
def guarded_address() -> Iterator[str]:
    with running_app(digest(SECRET)) as found:
        yield found


def decode_mask(answer: requests.Response) -> np.ndarray:
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    return np.asarray(Image.open(io.BytesIO(answer.content)))


@pytest.mark.parametrize("threshold", [None, 0.43])
def test_an_image_in_the_body_returns_the_mask(
    address: str,
    session: requests.Session,
    image: Image.Image,
    content: bytes,
    threshold: float | None,
) -> None:
    found = session.post(f"{address}/v1/segment", content, params={"threshold": threshold})
    expected = predictor(image).probability > (threshold or 0.5)
    np.testing.assert_array_equal(decode_mask(found), expected * np.uint8(255))


def test_an_image_in_a_form_returns_the_same_mask(
    address: str, session: requests.Session, content: bytes
) -> None:
    url = f"{address}/v1/segment"
    by_form = session.post(url, files={"image": ("a.png", content)})
    assert by_form.content == session.post(url, content).content


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ("", None, "image/png"),
        ("", "image/png,application/json", "image/png"),
        ("", "application/json", "application/json"),
        ("?format=png", "application/json", "image/png"),
        ("?format=json", "image/png", "application/json"),
    ],
)
def test_query_or_accept_header_select_the_format(
    address: str, session: requests.Session, content: bytes, query: str, accept: str, kind: str
) -> None:
    headers = {"Accept": accept} if accept else {}
    found = session.post(f"{address}/v1/segment{query}", content, headers=headers)
    assert found.headers["content-type"] == kind


def test_json_contains_the_contour(
    address: str, session: requests.Session, image: Image.Image, content: bytes
) -> None:
    found = session.post(f"{address}/v1/segment?format=json&threshold=0.45", content).json()
    assert (found["width"], found["height"], found["threshold"]) == (131, 75, 0.45)
    assert found["area"] == (predictor(image).probability > 0.45).sum()
    assert found["contour"]["type"] == "MultiPolygon"
    assert found["contour"]["coordinates"]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"plain words", 422, "lesion.jpg: expected an image, found 11 bytes of another format"),
        (b"", 422, "lesion.jpg: expected an image, found an empty file"),
        (b"0" * MAX_BYTES, 413, f"expected at most {MAX_BYTES} bytes, found more"),
    ],
    ids=["text", "empty", "large"],
)
def test_content_that_is_no_image_is_rejected_with_a_reason(
    address: str, session: requests.Session, body: bytes, status: int, reason: str
) -> None:
    found = session.post(f"{address}/v1/segment", files={"image": ("lesion.jpg", body)})
    assert (found.status_code, found.json()["detail"]) == (status, reason)


def test_a_decompression_bomb_is_rejected(address: str, session: requests.Session) -> None:
    sink = io.BytesIO()
    Image.new("1", (10_000, 10_000)).save(sink, "PNG")
    found = session.post(f"{address}/v1/segment", sink.getvalue())
    assert found.status_code == 422
    assert "too large for a photograph (100000000 pixels" in found.json()["detail"]


def test_an_endless_body_without_a_length_is_aborted(address: str) -> None:
    host = address.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=30)
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        while sent < 4 * MAX_BYTES:
            sent += 2**16
            yield b"0" * 2**16

    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        connection.request("POST", "/v1/segment", endless(), encode_chunked=True)
        assert connection.getresponse().status == 413
    connection.close()


def test_a_form_without_the_image_is_rejected(address: str, session: requests.Session) -> None:
    found = session.post(f"{address}/v1/segment", files={"photo": ("a.png", b"")})
    assert found.status_code == 422
    assert found.json()["detail"] == "expected a file in form field 'image', found none"


@pytest.mark.parametrize("threshold", ["0", "1", "nan", "-1", "half"])
def test_a_threshold_is_between_0_and_1(
    address: str, session: requests.Session, content: bytes, threshold: str
) -> None:
    found = session.post(f"{address}/v1/segment?threshold={threshold}", content)
    assert found.status_code == 422


@pytest.mark.parametrize(
    ("given", "status"), [(None, 401), ("another", 401), (SECRET + "!", 401), (SECRET, 200)]
)
def test_a_server_with_a_token_requires_it(
    guarded_address: str, session: requests.Session, content: bytes, given: str | None, status: int
) -> None:
    headers = {"Authorization": f"Bearer {given}"} if given else {}
    paths = ("/v1/segment", "/v1/view")
    answers = [session.post(f"{guarded_address}{path}", content, headers=headers) for path in paths]
    answers.append(session.get(f"{guarded_address}/v1/model", headers=headers))
    assert [answer.status_code for answer in answers] == [status] * 3
    if status == 401:
        assert all(answer.headers["www-authenticate"] == "Bearer" for answer in answers)


@pytest.mark.parametrize("path", ["/", "/page.js", "/docs", "/openapi.json", "/healthz", "/readyz"])
def test_the_page_itself_needs_no_token(
    guarded_address: str, session: requests.Session, path: str
) -> None:
    found = session.get(guarded_address + path)
    assert found.status_code == 200
    assert "http:" not in found.text.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in found.text


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/model", "/nowhere"])
def test_every_response_forbids_other_hosts(
    address: str, session: requests.Session, path: str
) -> None:
    headers = session.get(address + path).headers
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"


def test_the_openapi_description_lists_requests_and_responses(
    address: str, session: requests.Session
) -> None:
    paths = session.get(f"{address}/openapi.json").json()["paths"]
    assert set(paths) == {"/v1/model", "/v1/segment", "/v1/view"}
    segment = paths["/v1/segment"]["post"]
    assert set(segment["requestBody"]["content"]) == {"multipart/form-data", "image/*"}
    assert set(segment["responses"]["200"]["content"]) == {"image/png", "application/json"}
    assert {"401", "408", "413", "422", "503"} <= set(segment["responses"])


def test_a_short_token_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert configured_token_digest() == ""
    monkeypatch.setenv(TOKEN_VARIABLE, "fifteen letters")
    with pytest.raises(UsageError, match="expected at least 16 characters, found 15"):
        configured_token_digest()
    monkeypatch.setenv(TOKEN_VARIABLE, SECRET)
    assert configured_token_digest() == digest(SECRET)


@pytest.mark.parametrize("token", ["", " \n"])
def test_a_blank_token_is_refused(
    token: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as that of a secret whose file could not be written."""
    monkeypatch.setenv(TOKEN_VARIABLE, token)
    assert main(["serve", "./model"]) == 2
    assert "expected at least 16 characters, found 0" in capsys.readouterr().err
    with pytest.raises(UsageError, match="found 0"):
        build({"model": "./model"})


def test_a_service_without_a_token_has_to_be_declared_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Serve's configuration listens on every address."""
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    with pytest.raises(UsageError, match=f"{TOKEN_VARIABLE} is not set"):
        build({"model": "./model"})
    assert build({"model": "./model", "open": True})


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8000", 200),
        ("[::1]:8000", 200),
        ("LOCALHOST", 200),
        ("evil.example", 400),
        ("127.0.0.1.evil.example", 400),
        ("", 400),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_answered(
    session: requests.Session, host: str, status: int
) -> None:
    """A page of another site could otherwise reach the server by a name that it resolves here."""
    with running_app("", LOOPBACK_HOSTS) as address:
        found = session.get(f"{address}/v1/model", headers={"Host": host})
    assert found.status_code == status


def test_a_body_that_does_not_come_is_given_up(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "BODY_GRACE_S", 0.3)
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
    connection.putrequest("POST", "/v1/segment")
    connection.putheader("Content-Length", "1000000")
    connection.endheaders(b"abc")
    answer = connection.getresponse()
    assert (answer.status, b"bytes per second" in answer.read()) == (408, True)
    connection.close()


def test_uploads_that_take_too_much_memory_together_are_refused(
    session: requests.Session, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "MAX_HELD_BYTES", len(content) + 2)
    with running_app("") as address:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=30)
        connection.putrequest("POST", "/v1/segment")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders(b"abc")
        codes = set()
        while 503 not in codes:  # until the three bytes have arrived
            codes.add(session.post(f"{address}/v1/segment", content).status_code)
        connection.close()
        while codes != {200}:  # until the server has seen the end of that connection
            codes = {session.post(f"{address}/v1/segment", content).status_code}


def test_an_upload_touches_no_disk(
    address: str,
    session: requests.Session,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Starlette would write forms above 1 MB to the folder for temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    noise = np.random.default_rng(0).integers(0, 256, (900, 900, 3), dtype=np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).save(sink, "PNG")
    assert len(sink.getvalue()) > 2**21
    found = session.post(f"{address}/v1/segment", files={"image": ("a.png", sink.getvalue())})
    assert found.status_code == 200


def test_health_checks_answer_head_requests(address: str, session: requests.Session) -> None:
    assert session.head(f"{address}/healthz").status_code == 200


def test_a_public_address_needs_a_token(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    assert main(["serve", "./model", "--host", "0.0.0.0"]) == 2
    assert f"0.0.0.0: other machines can reach it; set {TOKEN_VARIABLE}" in capsys.readouterr().err


def test_a_port_in_use_is_reported_before_anything_starts(
    address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(str(tmp_path / "run"))
    save_checkpoint(run, small_config(), 1, 0.5, 0.5)
    port = address.rsplit(":", 1)[1]
    joined = ray.is_initialized()  # by tests that ran before, where these run with all others
    assert main(["serve", run.uri, "--port", port]) == 1
    stderr = capsys.readouterr().err
    assert stderr.startswith(f"segan: 127.0.0.1:{port}: cannot listen (Address already in use)")
    assert ray.is_initialized() == joined
