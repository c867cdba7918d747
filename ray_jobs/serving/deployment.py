"""A model behind a page and an HTTP API, with Ray Serve.

segan serve MODEL, or `serve deploy` and KubeRay's RayService with the import path
ray_jobs.serve:build and the argument `model`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve._private import replica
from ray.util.metrics import Counter, Histogram
from torch import Tensor

from ray_jobs.serving.web import ModelInfo, configured_token_digest, create_app
from segan import storage
from segan.data.archive.images import RejectedError, decode_image
from segan.inference.predictor import Predictor
from segan.inference.view import Dimensions, ImageSegmentation, encode_preview
from segan.runs.checkpoint import short_name

MAX_BATCH_SIZE = 8  # frames that go through the model together
BATCH_WAIT_TIMEOUT_S = 0.01  # seconds that a frame waits for others

_Decoded = tuple[Tensor, tuple[int, int], str]


@serve.deployment(max_ongoing_requests=64, max_queued_requests=512)
@serve.ingress()
class SegmentorDeployment:
    """A replica: it holds the model, puts concurrent requests' frames through it together, and
    decodes and encodes images in a few threads, so that as many are in memory whole and no more.
    """

    def __init__(self, model: str, threshold: float | None, token: str):
        _bind_grpc_to_loopback()
        storage.retry_access_checks()
        self.predictor = Predictor.load(model, threshold)
        width, height = self.predictor.frame_size
        self.predictor.predict_proba(
            torch.zeros(1, height, width, 3, dtype=torch.uint8)
        )  # ready is ready
        self.token = token
        self.executor = ThreadPoolExecutor(os.cpu_count())
        self.image_counter = Counter(
            "segan_serve_images", "Images by what became of them", ("outcome",)
        )
        self.batch_size_histogram = Histogram(
            "segan_serve_batch_size",
            "Frames that went through the model together",
            [1, 2, 4, MAX_BATCH_SIZE],
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        width, height = self.predictor.frame_size
        model_info = ModelInfo(
            model=short_name(self.predictor.name),
            threshold=self.predictor.threshold,
            num_members=len(self.predictor.members),
            input_size=Dimensions(width=width, height=height),
        )
        return create_app(self.segment_image, self.run_in_thread, model_info, self.token)

    async def run_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)

    async def segment_image(self, name: str, content: bytes, with_preview: bool) -> ImageSegmentation:
        """What the model makes of an image; raises RejectedError where it is none."""
        try:
            frame, size, picture = await self.run_in_thread(self._decode, name, content, with_preview)
        except RejectedError:
            self.image_counter.inc(tags={"outcome": "rejected"})
            raise
        maps = await self._predict_proba(frame)
        self.image_counter.inc(tags={"outcome": "segmented"})
        return ImageSegmentation(self.predictor, maps, size, picture)

    def _decode(self, name: str, content: bytes, with_preview: bool) -> _Decoded:
        image = decode_image(name, content)
        return (
            self.predictor.preprocess(image),
            image.size,
            encode_preview(image) if with_preview else "",
        )

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_TIMEOUT_S)
    async def _predict_proba(self, frames: list[Tensor]) -> list[Tensor]:
        self.batch_size_histogram.observe(len(frames))
        return await self.run_in_thread(self._predict_batch, frames)

    def _predict_batch(self, frames: list[Tensor]) -> list[Tensor]:
        # A CPU takes them one by one: its sums are then, to the last bit, those of an image alone,
        # and a mask does not depend on what else is asked.
        chunk_size = len(frames) if torch.cuda.is_available() else 1
        parts = torch.stack(frames).split(chunk_size)
        return [maps for part in parts for maps in self.predictor.predict_proba(part)]


def _bind_grpc_to_loopback() -> None:
    """Of the port for other deployments that this replica is about to open.

    Ray Serve 2.60 opens it on every address of the machine, asks for no token there and unpickles
    what comes: whoever reaches it runs what he likes. Proxies do not use it, and we have no other
    deployment.
    """
    original = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: original(server, "127.0.0.1:0")


def build_application(
    model: str, threshold: float | None, replicas: int = 1, gpus: int = 0
) -> serve.Application:
    """The model at a URI; of the environment's token only the digest goes along."""
    deployed: serve.Deployment = SegmentorDeployment  # the decorator made it one
    deployment = deployed.options(num_replicas=replicas, ray_actor_options={"num_gpus": gpus})
    return deployment.bind(model, threshold, configured_token_digest())


def build(arguments: dict[str, str]) -> serve.Application:
    """The application of a Serve configuration: `model`, and `threshold` if not the model's own."""
    threshold = arguments.get("threshold")
    return build_application(arguments["model"], None if threshold is None else float(threshold))
