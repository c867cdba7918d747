"""A proxy before the S3 server with the bad minutes of a real one, on loopback.

    python -m tests.fault_proxy --port 20100 --control 20101 --upstream http://127.0.0.1:20000

What passes is not touched, the Host header included, since requests are signed with it; but each
connection carries one request (`Connection: close`), so where a request begins is never in doubt.
Any process that knows the control port can order faults: it takes a line of JSON on a connection
and answers with one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.check_manifests import ROOT
from infra.local.processes import free_ports, retry_start, run_supervised

HOST = "127.0.0.1"
CHUNK = 64 * 1024
START_TIMEOUT_S = 20
RESET = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s: the connection ends with a RST


@dataclass(frozen=True)
class Fault:
    """What is done to a request.

    Attributes:
        kind: "answer" (an error in the server's place), "reset" (RST), "cut" (an end as if all
            had come), "hang" (nothing moves for `seconds`, then all goes on) or "refuse" (nothing
            listens for `seconds`).
        times: how many requests it befalls; None for all until `heal`. Of no use for "refuse".
        probability: with which it befalls a request that it fits.
        match: how the request must begin: "PUT", "GET /bucket/key", or anything.
        direction: "up" for bytes of the request, "down" for bytes of the answer.
        after: how many of them pass before it happens, those of the head too.
        past_head: `after` counts from the end of the head, which must come in one piece.
        status, code: of the answer, as S3 has them.
    """

    kind: str
    times: int | None = 1
    probability: float = 1.0
    request_prefix: str = ""
    direction: str = "up"
    after_bytes: int = 0
    after_headers: bool = False
    seconds: float = 0.0
    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class FaultProxy:
    """Where the proxy is, and its control from any process."""

    endpoint: str
    control_port: int

    def inject(self, *faults: Fault) -> None:
        """Adds faults; a request meets the first that fits it."""
        self._send_command({"inject": [asdict(fault) for fault in faults]})

    def clear(self) -> None:
        """Takes back all faults, and listens again; what hangs goes on."""
        self._send_command({"clear": True})

    def set_upstream(self, server: str) -> None:
        """From here on to the server at this URL; clients go on with the endpoint they know."""
        self._send_command({"upstream": server})

    def pop_requests(self) -> list[str]:
        """Every request since the last call, as "PUT /bucket/key?query", and " !kind" if ill."""
        return list(self._send_command({"requests": True})["requests"])

    def _send_command(self, order: dict[str, Any]) -> dict[str, Any]:
        where = urlsplit(self.endpoint).hostname, self.control_port
        with socket.create_connection(where, timeout=10) as line:
            line.sendall(json.dumps(order).encode() + b"\n")
            answer: dict[str, Any] = json.loads(line.makefile().readline())
        return answer


@contextlib.contextmanager
def run_fault_proxy(
    server: str, folder: Path, seed: int = 0, host: str = HOST
) -> Iterator[FaultProxy]:
    """The proxy in a process of its own, listening on `host`, before the server at a URL."""

    def start() -> FaultProxy:
        port, control = free_ports(2)
        command = [
            sys.executable,
            "-m",
            "tests.fault_proxy",
            f"--upstream={server}",
            f"--seed={seed}",
        ]
        environment = {"PYTHONPATH": str(ROOT)}
        program = stack.enter_context(
            run_supervised(
                [*command, f"--host={host}", f"--port={port}", f"--control={control}"],
                folder=folder,
                environment=environment,
                grace_period_s=1,
            )
        )
        faults = FaultProxy(f"http://{host}:{port}", control)
        program.wait_until(lambda: _is_responding(faults), START_TIMEOUT_S)
        return faults

    with contextlib.ExitStack() as stack:
        yield retry_start(start)


def _is_responding(faults: FaultProxy) -> bool:
    try:
        faults.pop_requests()
    except OSError:
        return False
    return True


@dataclass
class _ActiveFault:
    fault: Fault
    remaining: int | None


class _Proxy:
    def __init__(self, host: str, port: int, server: str, seed: int) -> None:
        self.host, self.port = host, port
        self.upstream = urlsplit(server)
        self.rng = random.Random(seed)
        self.faults: list[_ActiveFault] = []
        self.requests: list[str] = []
        self.cleared = asyncio.Event()
        self.listener: asyncio.Server | None = None
        self.listen_timer: asyncio.TimerHandle | None = None

    async def listen(self) -> None:
        if self.listen_timer:
            self.listen_timer.cancel()
        if self.listener is None:
            self.listener = await asyncio.start_server(self.handle_connection, self.host, self.port)

    async def refuse(self, seconds: float) -> None:
        if self.listener:
            self.listener.close()
            self.listener = None
        loop = asyncio.get_running_loop()
        self.listen_timer = loop.call_later(seconds, lambda: loop.create_task(self.listen()))

    async def handle_command(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """The control port: one order, one answer."""
        command = json.loads(await reader.readline() or "{}")
        answer: dict[str, Any] = {}
        if "clear" in command:
            self.faults.clear()
            self.cleared.set()
            self.cleared = asyncio.Event()
            await self.listen()
        for values in command.get("inject", []):
            fault = Fault(**values)
            if fault.kind == "refuse":
                await self.refuse(fault.seconds)
            else:
                self.faults.append(_ActiveFault(fault, fault.times))
        if "upstream" in command:
            self.upstream = urlsplit(command["upstream"])
        if "requests" in command:
            answer["requests"], self.requests = self.requests, []
        writer.write(json.dumps(answer).encode() + b"\n")
        await writer.drain()
        writer.close()

    def pick_fault(self, request: str) -> Fault | None:
        """The fault that befalls a request."""
        for one in self.faults:
            if one.remaining == 0 or not request.startswith(one.fault.request_prefix):
                continue
            if self.rng.random() < one.fault.probability:
                one.remaining = None if one.remaining is None else one.remaining - 1
                return one.fault
        return None

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """One connection of a client: one request, healthy or not."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            first, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            request = first.decode().rpartition(" ")[0]
            fault = self.pick_fault(request)
            self.requests.append(f"{request} !{fault.kind}" if fault else request)
            if fault and fault.kind == "answer":
                await _send_error_response(request, fault, reader, writer)
            else:
                lines = [line for line in lines if not line.lower().startswith(b"connection:")]
                head = b"\r\n".join([first, b"Connection: close", *lines])
                await self.forward(head, fault, reader, writer)
        writer.close()

    async def forward(
        self,
        head: bytes,
        fault: Fault | None,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Brings the request to the server and the answer back, till the server closes."""
        try:
            back, forth = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
        except OSError:
            _close_connection(writer, "reset")  # a listener cannot refuse any more
            return

        async def pump(
            direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, chunk: bytes
        ) -> None:
            left = fault.after_bytes if fault and fault.direction == direction else None
            chunk = chunk or await source.read(CHUNK)
            if fault and left is not None and fault.after_headers:
                left += chunk.index(b"\r\n\r\n") + 4
            while chunk:
                if fault and left is not None and left <= len(chunk):
                    sink.write(chunk[:left])
                    await sink.drain()
                    if fault.kind != "hang":
                        _close_connection(writer, fault.kind)
                        _close_connection(forth, "reset")
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.cleared.wait(), fault.seconds)
                    chunk, left = chunk[left:], None
                sink.write(chunk)
                await sink.drain()
                left = None if left is None else left - len(chunk)
                chunk = await source.read(CHUNK)

        up = asyncio.create_task(pump("up", reader, forth, head))
        try:
            await pump("down", back, writer, b"")
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            forth.close()


async def _send_error_response(
    request: str, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>as ordered</Message></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {fault.status} {fault.code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + (b"" if request.startswith("HEAD ") else body))
    writer.write_eof()
    # Closed while the request's body still comes, the connection would be reset, and the answer
    # lost with it.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while await reader.read(CHUNK):
                pass


def _close_connection(writer: asyncio.StreamWriter, kind: str) -> None:
    """Closes a connection: "reset" by a RST, else as one that has said all."""
    if kind == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.close()


async def _run(host: str, port: int, control: int, server: str, seed: int) -> None:
    proxy = _Proxy(host, port, server, seed)
    await proxy.listen()
    orders = await asyncio.start_server(proxy.handle_command, host, control)
    await orders.serve_forever()


def main() -> None:
    """Runs the proxy until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault_proxy", description=__doc__)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=int, required=True, help="port for orders")
    parser.add_argument("--upstream", required=True, help="URL of the S3 server")
    parser.add_argument("--seed", type=int, default=0, help="of the faults' probabilities")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            _run(
                arguments.host,
                arguments.port,
                arguments.control,
                arguments.upstream,
                arguments.seed,
            )
        )


if __name__ == "__main__":
    main()
