"""One alternating update of critic and segmentor (section 2): the heart of the method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam, Optimizer

from segan.config import Config
from segan.losses import dice_loss, multi_scale_l1
from segan.networks.critic import Critic, build_critic, mask_image
from segan.networks.segmentor import Segmentor, build_segmentor


@dataclass
class Losses:
    """Scalars of one step, left on the device: reading them is what waits for it.

    critic_loss: the multi-scale L1 that C raised, before its update.
    segmentor_loss: the same after C's update and clamp, what S lowers.
    dice_loss: the Dice loss of S's maps, trained on only where its weight is above 0.
    """

    critic_loss: Tensor
    segmentor_loss: Tensor
    dice_loss: Tensor


class Adversaries:
    """Segmentor and critic with an optimiser each, wrapped for DDP at any number of ranks.

    A process group must be up, of one rank too: there is one path for 1 and for n workers.
    """

    def __init__(self, config: Config, device: torch.device):
        seed = config.training.seed
        self.config = config
        self.segmentor: Segmentor = build_segmentor(config.network, seed).to(device)
        self.critic: Critic = build_critic(config.network, seed + 1).to(device)
        self.ddp_segmentor = _distribute(self.segmentor, device)
        self.ddp_critic = _distribute(self.critic, device)
        rate, betas = config.optimizer.learning_rate, config.optimizer.betas
        self.segmentor_optimizer: Optimizer = Adam(self.segmentor.parameters(), rate, betas)
        self.critic_optimizer: Optimizer = Adam(self.critic.parameters(), rate, betas)

    def set_learning_rate(self, rate: float) -> None:
        for optimizer in (self.segmentor_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self, image: Tensor, truth: Tensor) -> Losses:
        """One step of C that raises the loss, the clamp, then one step of S that lowers it.

        S's maps do not change between the two, so one forward of S serves both.

        Args:
            image: [B, 3, H, W] in [0, 1].
            truth: [B, classes, H, W], 0 or 1.
        """
        predicted = self.ddp_segmentor(image)
        masked_truth = mask_image(image, truth)
        critic_loss = self._step_critic(mask_image(image, predicted.detach()), masked_truth)
        segmentor_loss, dice = self._step_segmentor(image, predicted, truth, masked_truth)
        return Losses(critic_loss, segmentor_loss, dice)

    def _step_critic(self, masked_predicted: Tensor, masked_truth: Tensor) -> Tensor:
        self.critic.requires_grad_(True)
        # Two calls, never one on both halves together: batch statistics must not mix.
        loss = multi_scale_l1(
            self.ddp_critic(masked_predicted), self.ddp_critic(masked_truth), self.config.loss
        )
        self.critic_optimizer.zero_grad(set_to_none=True)
        (-loss).backward()
        self.critic_optimizer.step()
        self.critic.clamp(self.config.optimizer.clamp, self.config.optimizer.clamp_scope)
        return loss.detach()

    def _step_segmentor(
        self, image: Tensor, predicted: Tensor, truth: Tensor, masked_truth: Tensor
    ) -> tuple[Tensor, Tensor]:
        # C is only passed through here: no gradient for its weights, so nothing to exchange
        # between ranks, and the bare network rather than its DDP wrapper.
        self.critic.requires_grad_(False)
        with torch.no_grad():
            levels_truth = self.critic(masked_truth)
        loss = multi_scale_l1(
            self.critic(mask_image(image, predicted)), levels_truth, self.config.loss
        )
        weight = self.config.loss.dice_weight
        dice = dice_loss(predicted if weight > 0 else predicted.detach(), truth)
        self.segmentor_optimizer.zero_grad(set_to_none=True)
        (loss + weight * dice if weight > 0 else loss).backward()
        self.segmentor_optimizer.step()
        return loss.detach(), dice.detach()


def _distribute(network: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    # Buffers are not broadcast: C has none, and S's running statistics are averaged where they
    # are used. A broadcast between two forwards of one backward would be an in-place error.
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
