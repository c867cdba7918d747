"""The Ray Serve deployment of a model, and the application around it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.util.metrics import Counter, Histogram
from torch import Tensor

from ray_jobs.cluster.ray_internals import SERVE_REPLICA
from ray_jobs.serving.api import ModelInfo
from ray_jobs.serving.auth import configured_token_digest
from ray_jobs.serving.web import create_app
from segan import storage
from segan.data.archive.images import RejectedError, decode_image
from segan.inference.predictor import Predictor
from segan.inference.view import Dimensions, ImageSegmentation, encode_preview
from segan.runs.checkpoint import short_name

MAX_BATCH_SIZE = 8  # images
BATCH_WAIT_TIMEOUT_S = 0.01  # how long an image waits for others to fill a batch


@serve.deployment(max_ongoing_requests=64, max_queued_requests=512)
@serve.ingress()
class SegmentorDeployment:
    """A replica: it loads the model and runs it on batches of concurrent requests.

    One thread per CPU decodes and encodes images, which also limits the number of full-size images
    in memory.
    """

    def __init__(self, model: str, threshold: float | None, token_digest: str):
        _bind_grpc_to_loopback()
        storage.retry_access_checks()
        self.predictor = Predictor.load(model, threshold)
        width, height = self.predictor.frame_size
        # The first call is slow; the replica counts as ready after it.
        self.predictor.predict_proba(torch.zeros(1, height, width, 3, dtype=torch.uint8))
        self.token_digest = token_digest
        self.executor = ThreadPoolExecutor(os.cpu_count())
        self.image_counter = Counter("segan_serve_images", "Images by outcome", ("outcome",))
        self.batch_size_histogram = Histogram(
            "segan_serve_batch_size", "Images per batch", [1, 2, 4, MAX_BATCH_SIZE]
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        width, height = self.predictor.frame_size
        model_info = ModelInfo(
            model=short_name(self.predictor.name),
            threshold=self.predictor.threshold,
            num_members=len(self.predictor.members),
            input_size=Dimensions(width=width, height=height),
        )
        return create_app(self.segment_image, self.run_in_thread, model_info, self.token_digest)

    async def run_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)

    async def segment_image(
        self, name: str, content: bytes, with_preview: bool
    ) -> ImageSegmentation:
        """Segments an image; raises RejectedError if the content is not a usable image."""
        try:
            frame, size, preview = await self.run_in_thread(
                self._decode, name, content, with_preview
            )
        except RejectedError:
            self.image_counter.inc(tags={"outcome": "rejected"})
            raise
        maps = await self._predict_proba(frame)
        self.image_counter.inc(tags={"outcome": "segmented"})
        return ImageSegmentation(self.predictor, maps, size, preview)

    def _decode(
        self, name: str, content: bytes, with_preview: bool
    ) -> tuple[Tensor, tuple[int, int], str]:
        """The model's input, the image's (width, height), and the preview or ""."""
        image = decode_image(name, content)
        preview = encode_preview(image) if with_preview else ""
        return self.predictor.preprocess(image), image.size, preview

    @serve.batch(max_batch_size=MAX_BATCH_SIZE, batch_wait_timeout_s=BATCH_WAIT_TIMEOUT_S)
    async def _predict_proba(self, frames: list[Tensor]) -> Any:
        self.batch_size_histogram.observe(len(frames))
        return await self.run_in_thread(self._predict_batch, frames)

    def _predict_batch(self, frames: list[Tensor]) -> list[Tensor]:
        # On CPUs one by one: the sums, and so the mask, do not depend on the batch size.
        chunk_size = len(frames) if torch.cuda.is_available() else 1
        chunks = torch.split(torch.stack(frames), chunk_size)
        return [maps for chunk in chunks for maps in self.predictor.predict_proba(chunk)]


def _bind_grpc_to_loopback() -> None:
    """Restricts the gRPC port that this replica is about to open to the loopback address.

    Ray Serve 2.60 opens it on all addresses, without authentication, and unpickles what it
    receives, so anybody who reaches it can run code. Only calls between deployments use it, and
    there is only one.
    """
    replica = SERVE_REPLICA.load()
    original = replica.add_port_to_grpc_server
    replica.add_port_to_grpc_server = lambda server, _: original(server, "127.0.0.1:0")


def build_application(
    model: str, threshold: float | None, replicas: int = 1, gpus: int = 0
) -> serve.Application:
    """The application that serves the model at a URI, with the token of SEGAN_SERVE_TOKEN.

    Args:
        threshold: replaces the model's own.
        gpus: per replica.
    """
    decorated: serve.Deployment = SegmentorDeployment
    deployment = decorated.options(num_replicas=replicas, ray_actor_options={"num_gpus": gpus})
    return deployment.bind(model, threshold, configured_token_digest())


def build(arguments: dict[str, str]) -> serve.Application:
    """The application builder for Ray Serve's config files; arguments: `model`, `threshold`."""
    threshold = arguments.get("threshold")
    return build_application(arguments["model"], None if threshold is None else float(threshold))
