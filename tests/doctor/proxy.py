"""A proxy before the S3 server that changes answers, on loopback."""

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
DATE = re.compile(rb"(?i)(?<=\r\ndate: ).{29}(?=\r\n)")  # every HTTP date is as long as the next
REFUSAL = b"HTTP/1.1 501 Not Implemented\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass
class ProxyFaults:
    """What the proxy does to what passes through it, which else is not touched: it is signed.

    Attributes:
        ahead: added to the Date of each answer, seconds.
        refuse: says by the head of a request, in small letters, whether it is answered with 501.
    """

    clock_offset_s: float = 0.0
    should_refuse: Callable[[str], bool] = field(default=lambda head: False)

    def shift_date(self, answer: bytes) -> bytes:
        def later(found: re.Match[bytes]) -> bytes:
            moment = parsedate_to_datetime(found[0].decode()) + timedelta(
                seconds=self.clock_offset_s
            )
            return format_datetime(moment, usegmt=True).encode()

        return DATE.sub(later, answer)


@contextmanager
def run_proxy(server: str, changes: ProxyFaults) -> Iterator[str]:
    """Runs it before the server at a URL; yields its own."""
    to = urlsplit(server)

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection((str(to.hostname), to.port or 80)) as beyond:
                back = threading.Thread(target=self.answer, args=(beyond,))
                back.start()
                self.ask(beyond)
                with contextlib.suppress(OSError):
                    beyond.shutdown(socket.SHUT_RDWR)
                back.join()

        def ask(self, beyond: socket.socket) -> None:
            # A client waits for the answer before it sends its next request, so that each one
            # begins where something received does.
            with contextlib.suppress(OSError):
                while chunk := self.request.recv(CHUNK_SIZE):
                    if changes.should_refuse(
                        chunk.partition(b"\r\n\r\n")[0].decode("latin-1").lower()
                    ):
                        self.request.sendall(REFUSAL)
                        return
                    beyond.sendall(chunk)

        def answer(self, beyond: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while chunk := beyond.recv(CHUNK_SIZE):
                    self.request.sendall(changes.shift_date(chunk))
                self.request.shutdown(socket.SHUT_RDWR)

    class Listening(socketserver.ThreadingTCPServer):
        daemon_threads = True  # a client may keep its connection

    with Listening(("127.0.0.1", 0), Connection) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.server_address[1]}"
        finally:
            listening.shutdown()
            thread.join()
