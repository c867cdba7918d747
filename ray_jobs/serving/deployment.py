"""The Ray Serve deployment of a model, and the application around it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.util.metrics import Counter, Histogram
from torch import Tensor

from ray_jobs.cluster.ray_internals import SERVE_REPLICA
from ray_jobs.serving.api import describe_model
from ray_jobs.serving.auth import TOKEN_VARIABLE, configured_token_digest
from ray_jobs.serving.budget import MemoryBudget
from ray_jobs.serving.web import create_app
from segan import storage
from segan.data.archive.images import read_image_size
from segan.errors import RejectedError, UsageError
from segan.inference.predictor import Predictor
from segan.inference.upload import decode_upload
from segan.inference.view import ImageSegmentation
from segan.utils.resources import memory_limit_and_free, usable_cpus
from segan.utils.sandbox import LimitExceededError, Sandbox

MAX_BATCH_SIZE = 8  # images
BATCH_WAIT_TIMEOUT_S = 0.01  # how long an image waits for others to fill a batch
# Of decoding one image. One of 80 megapixels takes about 2 s and 1 GB, also of 16 bits or turned.
DECODE_CPU_S, DECODE_BYTES = 10.0, 1536 * 2**20
LARGE_PIXELS = 2**24  # images above are decoded by half of the processes, at most
BYTES_PER_PIXEL = 32  # that a request takes at its image's size; most for a contour
MEMORY_FRACTION = 0.5  # of the free memory that the images of all requests may take


# Many more than are computed at once: those that are still being sent count too, and slow ones must
# not keep others, health checks among them, out of the replica.
@serve.deployment(max_ongoing_requests=1024, max_queued_requests=512)
@serve.ingress()
class SegmentorDeployment:
    """A replica: it loads the model and runs it on batches of concurrent requests.

    Images are decoded in processes with a limit of CPU time and memory, one per CPU, and masks
    encoded in as many threads. Requests wait while those before them hold the memory that their
    images need. Large images take at most half of the processes, so that others pass them.

    Args:
        allowed_hosts: the names in a request's Host header; () for any.
        memory_fraction: of the free memory, for the images of all requests.
    """

    def __init__(
        self,
        model: str,
        threshold: float | None,
        token_digest: str,
        allowed_hosts: Sequence[str] = (),
        memory_fraction: float = MEMORY_FRACTION,
    ):
        _bind_grpc_to_loopback()
        storage.retry_access_checks()
        self.predictor = Predictor.load(model, threshold)
        width, height = self.predictor.frame_size
        # The first call is slow; the replica counts as ready after it.
        self.predictor.predict_proba(torch.zeros(1, height, width, 3, dtype=torch.uint8))
        self.token_digest, self.allowed_hosts = token_digest, allowed_hosts
        cpus = usable_cpus()
        self.executor = ThreadPoolExecutor(cpus)
        processes = max(2, cpus)
        # Their threads wait for processes, and must not take those that encode masks.
        self.decoding_executor = ThreadPoolExecutor(processes)
        self.sandbox = Sandbox(processes, DECODE_CPU_S, DECODE_BYTES)
        self.large_images = asyncio.Semaphore(processes // 2)
        self.budget = MemoryBudget(int(memory_fraction * memory_limit_and_free()[1]))
        self.image_counter = Counter("segan_serve_images", "Images by outcome", ("outcome",))
        self.batch_size_histogram = Histogram(
            "segan_serve_batch_size", "Images per batch", [1, 2, 4, MAX_BATCH_SIZE]
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        return create_app(
            self.segment_image,
            self.run_in_thread,
            describe_model(self.predictor),
            self.token_digest,
            self.allowed_hosts,
        )

    async def run_in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.executor, function, *arguments)

    @contextlib.asynccontextmanager
    async def segment_image(
        self, name: str, content: bytes, with_preview: bool
    ) -> AsyncIterator[ImageSegmentation]:
        """Segments an image, and holds the memory that its masks need while the block runs.

        Raises:
            RejectedError: the content is not a usable image.
        """
        width, height = await self._decode(read_image_size, name, content)
        pixels = width * height
        turn = self.large_images if pixels > LARGE_PIXELS else contextlib.nullcontext()
        async with turn, self.budget.reserve(pixels * BYTES_PER_PIXEL):
            frame, size, preview = await self._decode(
                decode_upload, name, content, self.predictor.frame_size, with_preview
            )
            maps = await self._predict_proba(torch.from_numpy(frame))
            self.image_counter.inc(tags={"outcome": "segmented"})
            yield ImageSegmentation(self.predictor, maps, size, preview)

    async def _decode(self, function: Callable[..., Any], name: str, *arguments: Any) -> Any:
        """Runs a function on an uploaded image in the sandbox; raises RejectedError."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(
                self.decoding_executor, self.sandbox.call, function, name, *arguments
            )
        except LimitExceededError as error:
            self.image_counter.inc(tags={"outcome": "rejected"})
            raise RejectedError(f"{name}: decoding it takes {error}") from None
        except RejectedError:
            self.image_counter.inc(tags={"outcome": "rejected"})
            raise

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
    model: str,
    threshold: float | None,
    replicas: int = 1,
    gpus: int = 0,
    allowed_hosts: Sequence[str] = (),
) -> serve.Application:
    """The application that serves the model at a URI, with the token of SEGAN_SERVE_TOKEN.

    Args:
        threshold: replaces the model's own.
        gpus: per replica.
        allowed_hosts: the names in a request's Host header; () for any.
    """
    decorated: serve.Deployment = SegmentorDeployment
    deployment = decorated.options(num_replicas=replicas, ray_actor_options={"num_gpus": gpus})
    fraction = MEMORY_FRACTION / replicas  # they may all be on one machine
    return deployment.bind(model, threshold, configured_token_digest(), allowed_hosts, fraction)


def build(arguments: dict[str, Any]) -> serve.Application:
    """The application builder for Ray Serve's config files.

    Args:
        arguments: `model`, `threshold`, and `open: true` to serve without a token.

    Raises:
        UsageError: there is no token; Serve's config files listen on every address.
    """
    threshold = arguments.get("threshold")
    if not (configured_token_digest() or arguments.get("open") is True):
        raise UsageError(
            f"{TOKEN_VARIABLE} is not set; set it, or the argument open: true for a service that "
            "everybody who reaches it may use"
        )
    return build_application(arguments["model"], None if threshold is None else float(threshold))
