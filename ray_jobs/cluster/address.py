"""Checks RAY_ADDRESS before Ray uses it.

Ray itself tries an address at which nothing listens for many minutes, and reports one that it
cannot parse with a traceback.
"""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from ray_jobs.cluster.ray_internals import RECORDED_ADDRESS
from segan.errors import UsageError

TIMEOUT_S = 10.0
# What a gRPC client sends first, and the type of the frame that a gRPC server answers with.
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"
SETTINGS_FRAME, FRAME_HEADER_BYTES = 4, 9
EXPECTED = (
    "expected HOST:PORT of the head of a Ray cluster, whose port is usually 6379, "
    "ray://HOST:PORT with its client port, usually 10001, or auto; `segan doctor` checks it"
)


def check_ray_address(address: str) -> None:
    """Checks that a Ray cluster can be at an address: it is well formed, and a server answers.

    Args:
        address: the value of RAY_ADDRESS; empty and `local` start a Ray of this process.

    Raises:
        UsageError: it cannot.
    """
    if address in ("", "local"):
        return
    target = address
    if address == "auto":
        target = RECORDED_ADDRESS.load()() or ""
        if not target:
            raise UsageError(
                "RAY_ADDRESS=auto: no Ray cluster has been started on this machine; start one "
                "(`make cluster`), or unset RAY_ADDRESS"
            )
    host, port = _parse(address, target.removeprefix("ray://"))
    try:
        with socket.create_connection((host, port), TIMEOUT_S) as connection:
            is_grpc = _speaks_http2(connection)
    except OSError as error:
        raise UsageError(f"RAY_ADDRESS={address}: {error}; {EXPECTED}") from None
    if not is_grpc:
        raise UsageError(
            f"RAY_ADDRESS={address}: the server there is not the head of a Ray cluster; {EXPECTED}"
        )


def _parse(address: str, target: str) -> tuple[str, int]:
    if target.startswith(("http://", "https://")):
        raise UsageError(
            f"RAY_ADDRESS={address}: a dashboard, to which `ray job submit --address` sends jobs; "
            f"{EXPECTED}"
        )
    try:
        url = urlsplit(f"//{target}")
        host, port = url.hostname, url.port
    except ValueError:
        host = port = None
    if not host or not port or url.netloc != target:
        raise UsageError(f"RAY_ADDRESS={address}: {EXPECTED}")
    return host, port


def _speaks_http2(connection: socket.socket) -> bool:
    if os.environ.get("RAY_USE_TLS", "0") not in ("0", ""):
        return True
    connection.sendall(HTTP2_PREFACE)
    header = b""
    while len(header) < FRAME_HEADER_BYTES and (
        received := connection.recv(FRAME_HEADER_BYTES - len(header))
    ):
        header += received
    return len(header) == FRAME_HEADER_BYTES and header[3] == SETTINGS_FRAME
