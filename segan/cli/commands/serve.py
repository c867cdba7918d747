"""The command that serves a model over HTTP."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import time
from typing import Annotated

import typer

from segan.cli.commands.options import Debug, ModelArgument, Threshold, join_cluster
from segan.errors import UsageError

app = typer.Typer()

LOOPBACK_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")

LocalRay = Annotated[
    bool, typer.Option("--local", help="Start a separate Ray instance on this machine.")
]


@app.command(epilog="segan serve s3://bucket/ensembles/first --local")
def serve(
    model: ModelArgument,
    threshold: Threshold = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of the model, one CPU each.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Timeout of a request, seconds.")] = 60,
    local: LocalRay = False,
    debug: Debug = False,
) -> None:
    """Serve a model as a web page and an HTTP API, until Ctrl-C.

    If SEGAN_SERVE_TOKEN is set, clients must send that token.
    """
    has_token = _check_token(host)
    if local:
        from ray_jobs import SINGLE_NODE_ENV

        os.environ.update(SINGLE_NODE_ENV)  # read when Ray is imported
    from ray_jobs.serving import runtime
    from ray_jobs.serving.deployment import build_application
    from segan.cli.console import echo, redirect_stdout_to_stderr
    from segan.inference.predictor import Predictor
    from segan.utils.signals import graceful_shutdown

    name = Predictor.load(model, threshold).name  # fail before starting anything
    runtime.check_port(host, port)
    with (
        graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request,
        contextlib.ExitStack() as stack,
    ):
        if local:
            echo("starting Ray on this machine")
            redirect_stdout_to_stderr()
            stack.enter_context(runtime.local_ray(debug))
        else:
            join_cluster(debug)
        hosts = () if has_token else LOOPBACK_HOSTS
        gpus = runtime.gpus_per_replica()
        served = build_application(name, threshold, replicas, gpus, hosts)
        stack.enter_context(runtime.serve_app(served, host, port, timeout, debug))
        echo(f"http://{host}:{port}  (stop with Ctrl-C)")
        while not stop_request():
            time.sleep(0.2)
        echo("stopping")


def _check_token(host: str) -> bool:
    """Whether clients need a token.

    Raises:
        UsageError: other machines could reach the server without one, or it is blank or short.
    """
    from ray_jobs.serving.auth import TOKEN_VARIABLE, configured_token_digest

    token = configured_token_digest()
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not (is_loopback or token):
        raise UsageError(
            f"{host}: other machines can reach it; set {TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )
    return bool(token)
