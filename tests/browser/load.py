"""A load test of a served model, compared with sequential calls of the same model.

python -m tests.browser.load http://127.0.0.1:8000 FOLDER --requests 200 --model MODEL

Prints throughput and latencies, and how many masks equal those of the sequential calls.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import io
import itertools
import os
import time
from pathlib import Path

import aiohttp
import numpy as np
import torch
from PIL import Image

from segan import Predictor

QUANTILES = (50, 90, 99, 100)


async def post_image(
    session: aiohttp.ClientSession, url: str, body: bytes
) -> tuple[int, bytes, float]:
    """The status, body and latency in seconds of a response."""
    began = time.perf_counter()
    async with session.post(url, data=body) as answer:
        content = await answer.read()
        return answer.status, content, time.perf_counter() - began


async def send_all(address: str, bodies: list[bytes]) -> list[bytes]:
    """Sends all requests at once; returns the bodies of the responses in order."""
    token = os.environ.get("SEGAN_SERVE_TOKEN", "")
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "image/jpeg"}
    at_once = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=at_once, headers=headers) as session:
        began = time.perf_counter()
        url = f"{address}/v1/segment"
        answers = await asyncio.gather(*(post_image(session, url, body) for body in bodies))
        seconds = time.perf_counter() - began
    statuses = collections.Counter(status for status, _, _ in answers)
    latencies = np.percentile([latency for _, _, latency in answers], QUANTILES)
    print(f"{len(bodies)} requests in {seconds:.1f} s, {len(bodies) / seconds:.1f}/s")
    print(f"statuses {dict(statuses)}")
    print("  ".join(f"p{q} {one:.2f} s" for q, one in zip(QUANTILES, latencies, strict=True)))
    return [content for _, content, _ in answers]


def predict_sequentially(model: str, bodies: list[bytes]) -> list[np.ndarray]:
    """The masks of sequential calls in this process."""
    torch.set_num_threads(1)  # as in a replica, for equal sums
    predictor = Predictor.load(model)
    began = time.perf_counter()
    masks = [predictor(Image.open(io.BytesIO(body))).mask for body in bodies]
    seconds = time.perf_counter() - began
    print(f"sequential: {seconds:.1f} s, {len(bodies) / seconds:.1f}/s")
    return masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path, help="of .jpg files")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--model", required=True, help="URI of the served model")
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    bodies = list(itertools.islice(itertools.cycle(images), options.requests))
    answers = asyncio.run(send_all(options.address, bodies))
    masks = predict_sequentially(options.model, bodies)
    same = [
        np.array_equal(np.asarray(Image.open(io.BytesIO(answer))) > 0, mask)
        for answer, mask in zip(answers, masks, strict=True)
    ]
    print(f"{sum(same)} of {len(same)} masks equal those of the sequential calls")


if __name__ == "__main__":
    main()
