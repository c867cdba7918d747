"""The command that shows a model in a browser and to programs."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import time
from typing import Annotated

import typer

from segan.cli.commands.options import Debug, Threshold, join_cluster
from segan.errors import UsageError

app = typer.Typer()

LocalRay = Annotated[bool, typer.Option("--local", help="On a Ray of its own, on this machine.")]


@app.command(epilog="segan serve s3://bucket/ensembles/first --local")
def serve(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    threshold: Threshold = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model, a CPU each.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a request.")] = 60,
    local: LocalRay = False,
    debug: Debug = False,
) -> None:
    """Show a model on a page and answer an HTTP API, until Ctrl-C.

    With SEGAN_SERVE_TOKEN in the environment, both ask for that token.
    """
    _check_token(host)
    if local:
        from ray_jobs import LOOPBACK_ENV

        os.environ.update(LOOPBACK_ENV)  # read when Ray is imported
    from ray_jobs.serving import runtime
    from ray_jobs.serving.deployment import build_application
    from segan.cli.console import echo, redirect_stdout_to_stderr
    from segan.inference.predictor import Predictor
    from segan.utils.signals import graceful_shutdown

    name = Predictor.load(model, threshold).name  # a mistake is seen before anything is started
    runtime.check_port(host, port)
    with (
        graceful_shutdown(signal.SIGINT, signal.SIGTERM) as stop_request,
        contextlib.ExitStack() as stack,
    ):
        if local:
            echo("starting a Ray on this machine")
            redirect_stdout_to_stderr()
            stack.enter_context(runtime.local_ray(debug))
        else:
            join_cluster(debug)
        served = build_application(name, threshold, replicas, runtime.gpus_per_replica())
        stack.enter_context(runtime.serve_app(served, host, port, timeout, debug))
        echo(f"http://{host}:{port}  (Ctrl-C ends it)")
        while not stop_request():
            time.sleep(0.2)
        echo("ending")


def _check_token(host: str) -> None:
    """What others on the network can reach must ask for a token, and for none that is guessed."""
    try:
        from ray_jobs.serving.auth import TOKEN_VARIABLE, configured_token_digest
    except ModuleNotFoundError as error:
        raise UsageError(f"serve needs {error.name}: pip install 'segan[serve]'") from None

    token = configured_token_digest()
    try:
        alone = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = False
    if not (alone or token):
        raise UsageError(
            f"{host}: others can reach it; set {TOKEN_VARIABLE}, or listen on 127.0.0.1"
        )
