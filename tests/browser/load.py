"""Many requests at once to a served model, beside calls of the same model in a loop.

python -m tests.browser.load http://127.0.0.1:8000 FOLDER --requests 200 --model MODEL

Prints how fast and after how long they were answered; each mask must be that of its own image.
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
    """An answer's status and body, and the seconds till it was all there."""
    began = time.perf_counter()
    async with session.post(url, data=body) as answer:
        content = await answer.read()
        return answer.status, content, time.perf_counter() - began


async def send_all(address: str, bodies: list[bytes]) -> list[bytes]:
    """All at once; the answers in the order of the requests."""
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
    """The masks of the same images by one call after another, in this process."""
    torch.set_num_threads(1)  # as many as a replica's, so that sums come out the same
    predictor = Predictor.load(model)
    began = time.perf_counter()
    masks = [predictor(Image.open(io.BytesIO(body))).mask for body in bodies]
    seconds = time.perf_counter() - began
    print(f"in a loop: {seconds:.1f} s, {len(bodies) / seconds:.1f}/s")
    return masks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("folder", type=Path, help="with .jpg files")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--model", required=True, help="URI of the model that is served")
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))]
    bodies = list(itertools.islice(itertools.cycle(images), options.requests))
    answers = asyncio.run(send_all(options.address, bodies))
    masks = predict_sequentially(options.model, bodies)
    same = [
        np.array_equal(np.asarray(Image.open(io.BytesIO(answer))) > 0, mask)
        for answer, mask in zip(answers, masks, strict=True)
    ]
    print(f"{sum(same)} of {len(same)} masks are those of the loop")


if __name__ == "__main__":
    main()
