"""A model behind a page and an HTTP API, with Ray Serve.

segan serve MODEL, or `serve deploy` and KubeRay's RayService with the import path
ray_jobs.serve:build and the argument `model`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve._private import replica
from ray.util.metrics import Counter, Histogram
from torch import Tensor

from ray_jobs.web import About, build_app, token_digest
from segan import storage
from segan.data.images import RejectedError, decode_image
from segan.inference.predictor import Predictor
from segan.inference.view import Reading, Size, encode_picture
from segan.terminal import short_name

BATCH = 8  # frames that go through the model together
PATIENCE = 0.01  # seconds that a frame waits for others

_Decoded = tuple[Tensor, tuple[int, int], str]


@serve.deployment(max_ongoing_requests=64, max_queued_requests=512)
@serve.ingress()
class Segmenting:
    """A replica: it holds the model, puts concurrent requests' frames through it together, and
    decodes and encodes images in a few threads, so that as many are in memory whole and no more.
    """

    def __init__(self, model: str, threshold: float | None, token: str):
        _keep_to_loopback()
        storage.be_patient()
        self.predictor = Predictor.load(model, threshold)
        width, height = self.predictor.size
        self.predictor.maps(torch.zeros(1, height, width, 3, dtype=torch.uint8))  # ready is ready
        self.token = token
        self.threads = ThreadPoolExecutor(os.cpu_count())
        self.images = Counter("segan_serve_images", "Images by what became of them", ("outcome",))
        self.batches = Histogram(
            "segan_serve_batch", "Frames that went through the model together", [1, 2, 4, BATCH]
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        width, height = self.predictor.size
        about = About(
            model=short_name(self.predictor.name),
            threshold=self.predictor.threshold,
            members=len(self.predictor.members),
            frame=Size(width=width, height=height),
        )
        return build_app(self.read, self.aside, about, self.token)

    async def aside(self, do: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.threads, do, *arguments)

    async def read(self, name: str, content: bytes, seen: bool) -> Reading:
        """What the model makes of an image; raises RejectedError where it is none."""
        try:
            frame, size, picture = await self.aside(self._decode, name, content, seen)
        except RejectedError:
            self.images.inc(tags={"outcome": "refused"})
            raise
        maps = await self._maps(frame)
        self.images.inc(tags={"outcome": "segmented"})
        return Reading(self.predictor, maps, size, picture)

    def _decode(self, name: str, content: bytes, seen: bool) -> _Decoded:
        image = decode_image(name, content)
        return self.predictor.frame(image), image.size, encode_picture(image) if seen else ""

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=PATIENCE)
    async def _maps(self, frames: list[Tensor]) -> list[Tensor]:
        self.batches.observe(len(frames))
        return await self.aside(self._segment, frames)

    def _segment(self, frames: list[Tensor]) -> list[Tensor]:
        # A CPU takes them one by one: its sums are then, to the last bit, those of an image alone,
        # and a mask does not depend on what else is asked.
        together = len(frames) if torch.cuda.is_available() else 1
        parts = torch.stack(frames).split(together)
        return [maps for part in parts for maps in self.predictor.maps(part)]


def _keep_to_loopback() -> None:
    """Of the port for other deployments that this replica is about to open.

    Ray Serve 2.60 opens it on every address of the machine, asks for no token there and unpickles
    what comes: whoever reaches it runs what he likes. Proxies do not use it, and we have no other
    deployment.
    """
    add = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: add(server, "127.0.0.1:0")


def application(
    model: str, threshold: float | None, replicas: int = 1, gpus: int = 0
) -> serve.Application:
    """The model at a URI; of the environment's token only the digest goes along."""
    deployed: serve.Deployment = Segmenting  # the decorator made it one
    deployment = deployed.options(num_replicas=replicas, ray_actor_options={"num_gpus": gpus})
    return deployment.bind(model, threshold, token_digest())


def build(arguments: dict[str, str]) -> serve.Application:
    """The application of a Serve configuration: `model`, and `threshold` if not the model's own."""
    threshold = arguments.get("threshold")
    return application(arguments["model"], None if threshold is None else float(threshold))


if __name__ == "__main__":
    from segan.cli import main

    sys.exit(main(["serve", *sys.argv[1:]]))
