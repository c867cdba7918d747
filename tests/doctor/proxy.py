"""A proxy in front of the S3 server that changes responses, on loopback."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import urlsplit

CHUNK_SIZE = 64 * 1024
DATE = re.compile(rb"(?i)(?<=\r\ndate: ).{29}(?=\r\n)")  # all HTTP dates have the same length
REFUSAL = b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class ProxyFaults:
    """What the proxy changes; everything else passes unchanged, since requests are signed.

    Attributes:
        clock_offset_s: added to the Date header of each response.
        should_refuse: called with the headers of a request in lower case; if true, the response is
            501.
    """

    clock_offset_s: float = 0.0
    should_refuse: Callable[[str], bool] = field(default=lambda head: False)

    def shift_date(self, response: bytes) -> bytes:
        offset = timedelta(seconds=self.clock_offset_s)

        def later(match: re.Match[bytes]) -> bytes:
            date = parsedate_to_datetime(match[0].decode()) + offset
            return format_datetime(date, usegmt=True).encode()

        return DATE.sub(later, response)


@contextmanager
def run_proxy(server: str, faults: ProxyFaults) -> Iterator[str]:
    """Runs the proxy in front of the server at a URL; yields its own URL."""
    upstream_url = urlsplit(server)

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(
                (str(upstream_url.hostname), upstream_url.port or 80)
            ) as upstream:
                responding = threading.Thread(target=self.forward_responses, args=(upstream,))
                responding.start()
                self.forward_requests(upstream)
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)
                responding.join()

        def forward_requests(self, upstream: socket.socket) -> None:
            # A client waits for the response before it sends its next request, so each request
            # begins at the start of a received chunk.
            with contextlib.suppress(OSError):
                while chunk := self.request.recv(CHUNK_SIZE):
                    if faults.should_refuse(
                        chunk.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
                    ):
                        self.request.sendall(REFUSAL)
                        return
                    upstream.sendall(chunk)

        def forward_responses(self, upstream: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while chunk := upstream.recv(CHUNK_SIZE):
                    self.request.sendall(faults.shift_date(chunk))
                self.request.shutdown(socket.SHUT_RDWR)

    class ProxyServer(socketserver.ThreadingTCPServer):
        daemon_threads = True  # a client may keep its connection open

    with ProxyServer(("127.0.0.1", 0), Connection) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{proxy.server_address[1]}"
        finally:
            proxy.shutdown()
            thread.join()
