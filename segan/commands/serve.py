"""The command that shows a model in a browser and to programs."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import time
from typing import Annotated

import typer

from segan.commands.options import Debug, Threshold, join_cluster
from segan.errors import UsageError

app = typer.Typer()

OwnRay = Annotated[bool, typer.Option("--local", help="On a Ray of its own, on this machine.")]
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # see infra.local.cluster


@app.command(epilog="segan serve s3://bucket/ensembles/first --local")
def serve(
    model: Annotated[str, typer.Argument(help="URI of a run, a checkpoint or an ensemble.")],
    threshold: Threshold = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    replicas: Annotated[int, typer.Option(min=1, help="Copies of the model, a CPU each.")] = 1,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds for a request.")] = 60,
    local: OwnRay = False,
    debug: Debug = False,
) -> None:
    """Show a model on a page and answer an HTTP API, until Ctrl-C.

    With SEGAN_SERVE_TOKEN in the environment, both ask for that token.
    """
    _check_token(host)
    if local:
        os.environ.update(LOOPBACK)  # before Ray is imported
    from ray_jobs import hosting
    from ray_jobs.serve import application
    from segan.inference.predictor import Predictor
    from segan.interrupts import stoppable
    from segan.terminal import divert, say

    name = Predictor.load(model, threshold).name  # a mistake is seen before anything is started
    hosting.check_port(host, port)
    with stoppable(signal.SIGINT, signal.SIGTERM) as stopped, contextlib.ExitStack() as stack:
        if local:
            say("starting a Ray on this machine")
            divert()
            stack.enter_context(hosting.own_ray(debug))
        else:
            join_cluster(debug)
        served = application(name, threshold, replicas, hosting.gpus())
        stack.enter_context(hosting.hosted(served, host, port, timeout, debug))
        say(f"http://{host}:{port}  (Ctrl-C ends it)")
        while not stopped():
            time.sleep(0.2)
        say("ending")


def _check_token(host: str) -> None:
    """What others on the network can reach must ask for a token, and for none that is guessed."""
    try:
        from ray_jobs.web import TOKEN, token_digest
    except ModuleNotFoundError as error:
        raise UsageError(f"serve needs {error.name}: pip install 'segan[serve]'") from None

    token = token_digest()
    try:
        alone = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        alone = False
    if not (alone or token):
        raise UsageError(f"{host}: others can reach it; set {TOKEN}, or listen on 127.0.0.1")
