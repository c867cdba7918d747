"""A page of a run or a study in progress, served on 127.0.0.1 and rendered at each request.

It reads storage with this process's credentials and writes nothing. The page reloads itself by
HTTP's `Refresh` header; it runs no script.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from segan import storage
from segan.errors import SeganError, UsageError
from segan.report.progress import Progress, ProgressReader, describe_progress
from segan.report.search import SearchSummary
from segan.report.training_charts import search_context, training_charts
from segan.utils.html import render

LOOPBACK = "127.0.0.1"
REFRESH_INTERVAL_S = 10

logger = logging.getLogger(__name__)


def render_live_page(progress: Progress, metrics: Sequence[Mapping[str, Any]]) -> str:
    """The page of a run or a study in progress.

    Args:
        metrics: the lines of metrics.jsonl of the best trial, or of the run.
    """
    search = None
    if progress.kind == "study":
        epochs = sum(trial.epochs for trial in progress.trials)
        search = SearchSummary(
            algorithm=progress.algorithm,
            trials=progress.trials,
            rungs=progress.rungs,
            epochs_trained=epochs,
            epochs_without_stopping=epochs,  # known only at the end
        )
    epoch_lines = [line for line in metrics if line["kind"] == "epoch"]
    rows_per_epoch = epoch_lines[-1]["samples"] / epoch_lines[-1]["epoch"] if epoch_lines else 0.0
    left = progress.seconds_left
    return render(
        "segan/report/live.html.j2",
        name=storage.basename(progress.uri),
        progress=progress,
        best=progress.best,
        summary=describe_progress(progress),
        time_left=str(timedelta(seconds=round(left))) if left and progress.host else "",
        interval=REFRESH_INTERVAL_S,
        training_charts=training_charts(rows_per_epoch, metrics),
        **search_context(search),
    )


class LiveServer(HTTPServer):
    """Serves the page of one run or study; one request at a time.

    Raises:
        UsageError: the port cannot be used.
    """

    def __init__(self, reader: ProgressReader, port: int):
        self.reader = reader
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"--port {port}: {error.strerror or error}; give another port, or 0 for any"
            ) from None
        self.url = f"http://{LOOPBACK}:{self.server_port}/"

    def page(self) -> tuple[str, bool]:
        """The page, and whether it should reload itself."""
        progress = self.reader.read()
        trial = progress.best or (progress.trials[0] if progress.trials else None)
        metrics = self.reader.metrics(trial.name) if trial else []
        return render_live_page(progress, metrics), progress.host is not None


class _Handler(BaseHTTPRequestHandler):
    server: LiveServer
    timeout = 10  # seconds for a request to arrive, as others wait for it

    def do_GET(self) -> None:
        host = self.headers.get("Host", "").partition(":")[0]
        if self.path != "/" or host not in (LOOPBACK, "localhost"):  # no other site's scripts
            self.send_error(404)
            return
        try:
            (page, reload), status, kind = self.server.page(), 200, "text/html"
        except SeganError as error:  # storage may be back at the next request
            page, reload, status, kind = f"{error}\n", True, 503, "text/plain"
        content = page.encode()
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        if reload:
            self.send_header("Refresh", str(REFRESH_INTERVAL_S))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
