"""A proxy in front of the S3 server that injects network and server faults, on loopback.

    python -m tests.fault_proxy --port 20100 --control 20101 --upstream http://127.0.0.1:20000

Requests and responses pass unchanged, including the Host header, which is part of the signature;
only `Connection: close` is set, so that each connection carries one request. Any process that
knows the control port can inject faults: it sends one line of JSON and receives one.
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
    """What happens to a request.

    Attributes:
        kind: "answer" (the proxy responds with an error), "reset" (RST), "cut" (an early end of
            the stream), "hang" (no byte passes for `seconds`), "refuse" (the port is closed for
            `seconds`) or "slow" (the requests that it hits share `bytes_per_second`).
        times: number of requests to hit; None for all until `clear`. Ignored for "refuse".
        probability: of hitting a request that matches.
        request_prefix: start of the requests that match, such as "PUT" or "GET /bucket/key".
        direction: "up" for bytes of the request, "down" for bytes of the response.
        after_bytes: how many of them pass before the fault, headers included.
        after_headers: `after_bytes` counts from the end of the headers, which must arrive in one
            chunk.
        status, code: HTTP status and S3 error code of "answer".
    """

    kind: str
    times: int | None = 1
    probability: float = 1.0
    request_prefix: str = ""
    direction: str = "up"
    after_bytes: int = 0
    after_headers: bool = False
    seconds: float = 0.0
    bytes_per_second: float = 0.0
    status: int = 503
    code: str = "SlowDown"


@dataclass(frozen=True)
class FaultProxy:
    """Address and control of a running proxy, from any process."""

    endpoint: str
    control_port: int

    def inject(self, *faults: Fault) -> None:
        """Adds faults; a request is hit by the first that matches."""
        self._send_command({"inject": [asdict(fault) for fault in faults]})

    def clear(self) -> None:
        """Removes all faults: listens again and releases what hangs."""
        self._send_command({"clear": True})

    def set_upstream(self, server: str) -> None:
        """Forwards new connections to the server at this URL; the proxy's own address stays."""
        self._send_command({"upstream": server})

    def pop_requests(self) -> list[str]:
        """Returns the requests since the last call, as "PUT /bucket/key?query[ !kind of fault]"."""
        return list(self._send_command({"requests": True})["requests"])

    def _send_command(self, command: dict[str, Any]) -> dict[str, Any]:
        address = urlsplit(self.endpoint).hostname, self.control_port
        with socket.create_connection(address, timeout=10) as connection:
            connection.sendall(json.dumps(command).encode() + b"\n")
            answer: dict[str, Any] = json.loads(connection.makefile().readline())
        return answer


@contextlib.contextmanager
def run_fault_proxy(
    server: str, folder: Path, seed: int = 0, host: str = HOST
) -> Iterator[FaultProxy]:
    """Runs the proxy in a process of its own, listening on `host`, in front of a server's URL."""

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
        self.free_at: dict[Fault, float] = {}  # when the next byte of a slow link may pass
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
        """Handles one command of the control port."""
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
        """Returns the fault that hits a request, if any."""
        for active in self.faults:
            fault = active.fault
            if active.remaining == 0 or not request.startswith(fault.request_prefix):
                continue
            if self.rng.random() < fault.probability:
                active.remaining = None if active.remaining is None else active.remaining - 1
                return fault
        return None

    async def take_turn(self, fault: Fault, num_bytes: int) -> None:
        """Waits until a slow link is free for these bytes."""
        now = asyncio.get_running_loop().time()
        begin = max(now, self.free_at.get(fault, 0.0))
        self.free_at[fault] = begin + num_bytes / fault.bytes_per_second
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.cleared.wait(), self.free_at[fault] - now)

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Handles one connection of a client, which carries one request."""
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
        """Forwards the request to the server and the response back, until the server closes."""
        try:
            server_reader, server_writer = await asyncio.open_connection(
                self.upstream.hostname, self.upstream.port
            )
        except OSError:
            _close_connection(
                writer, "reset"
            )  # the connection is accepted already, so it cannot be refused
            return

        async def pump(
            direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter, chunk: bytes
        ) -> None:
            left = fault.after_bytes if fault and fault.direction == direction else None
            chunk = chunk or await source.read(CHUNK)
            if fault and left is not None and fault.kind == "slow":
                while chunk:
                    await self.take_turn(fault, len(chunk))
                    sink.write(chunk)
                    await sink.drain()
                    chunk = await source.read(CHUNK)
                return
            if fault and left is not None and fault.after_headers:
                left += chunk.index(b"\r\n\r\n") + 4
            while chunk:
                if fault and left is not None and left <= len(chunk):
                    sink.write(chunk[:left])
                    await sink.drain()
                    if fault.kind != "hang":
                        _close_connection(writer, fault.kind)
                        _close_connection(server_writer, "reset")
                        return
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self.cleared.wait(), fault.seconds)
                    chunk, left = chunk[left:], None
                sink.write(chunk)
                await sink.drain()
                left = None if left is None else left - len(chunk)
                chunk = await source.read(CHUNK)

        up = asyncio.create_task(pump("up", reader, server_writer, head))
        try:
            await pump("down", server_reader, writer, b"")
        finally:
            up.cancel()
            await asyncio.gather(up, return_exceptions=True)
            server_writer.close()


async def _send_error_response(
    request: str, fault: Fault, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{fault.code}</Code><Message>injected fault</Message></Error>"
    ).encode()
    head = (
        f"HTTP/1.1 {fault.status} {fault.code}\r\nContent-Type: application/xml\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + (b"" if request.startswith("HEAD ") else body))
    writer.write_eof()
    # Closing before the request has been read would reset the connection and lose the response.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while await reader.read(CHUNK):
                pass


def _close_connection(writer: asyncio.StreamWriter, kind: str) -> None:
    """Closes a connection: by RST for "reset", else normally."""
    if kind == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()
    else:
        writer.close()


async def _run(host: str, port: int, control: int, server: str, seed: int) -> None:
    proxy = _Proxy(host, port, server, seed)
    await proxy.listen()
    server_socket = await asyncio.start_server(proxy.handle_command, host, control)
    await server_socket.serve_forever()


def main() -> None:
    """Runs the proxy until it is terminated."""
    parser = argparse.ArgumentParser(prog="python -m tests.fault_proxy", description=__doc__)
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--control", type=int, required=True, help="control port")
    parser.add_argument("--upstream", required=True, help="URL of the S3 server")
    parser.add_argument("--seed", type=int, default=0, help="seed for the probabilities of faults")
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
