"""The baseline of the step benchmark: the authors' order of operations without optimisations.

S runs forward twice, once for each update, and every gradient is computed: also those of C's
weights in S's update, and those through the ground truth's branch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Adam

from segan.config import Config
from segan.losses import multi_scale_l1
from segan.networks.critic import build_critic, mask_image
from segan.networks.segmentor import build_segmentor


class BaselineStep:
    """Both networks and their optimisers."""

    def __init__(self, config: Config, device: torch.device):
        self.config = config
        self.segmentor = build_segmentor(config.network, config.training.seed).to(device)
        self.critic = build_critic(config.network, config.training.seed + 1).to(device)
        rate, betas = config.optimizer.learning_rate, config.optimizer.betas
        self.segmentor_optimizer = Adam(self.segmentor.parameters(), rate, betas)
        self.critic_optimizer = Adam(self.critic.parameters(), rate, betas)

    def __call__(self, image: Tensor, truth: Tensor) -> None:
        """One step of C, weight clipping, one step of S; shapes as in `SegAN.train_step`."""
        maps = self.segmentor(image).detach()
        self.critic_optimizer.zero_grad()
        torch.autograd.backward(-self._loss(image, maps, truth))
        self.critic_optimizer.step()
        limit = self.config.optimizer.weight_clip or math.inf
        for parameter in self.critic.parameters():
            parameter.data.clamp_(-limit, limit)
        maps = self.segmentor(image)
        self.segmentor_optimizer.zero_grad()
        torch.autograd.backward(self._loss(image, maps, truth))
        self.segmentor_optimizer.step()

    def _loss(self, image: Tensor, maps: Tensor, truth: Tensor) -> Tensor:
        predicted = self.critic(mask_image(image, maps))
        return multi_scale_l1(predicted, self.critic(mask_image(image, truth)), self.config.loss)
