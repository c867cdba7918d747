"""The scores of a segmentor on the validation frames of all ranks."""

from __future__ import annotations

import torch

from segan.config import Config
from segan.data.records.frames import FrameShare
from segan.evaluation.sweep import Sweep
from segan.inference.frames import segment_frames
from segan.networks.segmentor import Segmentor
from segan.training.distributed import all_reduce_sum
from segan.training.image_log import ImageLog


def validate(
    segmentor: Segmentor,
    frames: FrameShare,
    config: Config,
    device: torch.device,
    image_log: ImageLog | None = None,
) -> Sweep:
    """Returns the threshold sweep over all ranks' frames; leaves S in training mode.

    Args:
        frames: this rank's share.
        image_log: gets the maps of the frames that it shows.
    """
    sweep = Sweep.empty(config.network.classes)
    segmentor.eval()
    for samples in frames.batches(config.evaluation.batch_size):
        image = torch.tensor(samples.image, device=device)
        probability = segment_frames(segmentor, image, config)
        if image_log:
            image_log.keep(samples, probability)
        sweep.update(probability, torch.tensor(samples.mask, device=device))
    segmentor.train()
    sums = all_reduce_sum(torch.from_numpy(sweep.sums).to(device))
    count = all_reduce_sum(torch.tensor(sweep.count, device=device))
    pixels = all_reduce_sum(torch.from_numpy(sweep.pixels).to(device))
    return Sweep(sums.cpu().numpy(), int(count), pixels.cpu().numpy())
