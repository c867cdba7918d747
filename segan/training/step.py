"""One alternating update of critic and segmentor (section 2): the heart of the method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from segan.config import Config
from segan.losses import AdversarialLoss, dice_loss, weighted_segmentor_loss
from segan.networks.critic import Critic, build_critic, mask_image
from segan.networks.segmentor import Segmentor, build_segmentor
from segan.training.ema import EMA
from segan.training.precision import PrecisionPolicy


@dataclass
class Losses:
    """Scalars of one step, left on the device: reading them is what waits for it.

    critic_loss: the multi-scale L1 that C raised, before its update; 0 without a critic.
    segmentor_loss: the same after C's update and clamp, what S lowers but for the Dice loss.
    dice_loss: the Dice loss of S's maps, trained on only where its weight is above 0.
    """

    critic_loss: Tensor
    segmentor_loss: Tensor
    dice_loss: Tensor


class SegAN:
    """Segmentor and critic with an optimiser each, wrapped for DDP at any number of ranks.

    A process group must be up, of one rank too: there is one path for 1 and for n workers.
    """

    def __init__(self, config: Config, device: torch.device):
        seed = config.training.seed
        self.config = config
        self.precision = PrecisionPolicy(config.performance, device)
        self.segmentor: Segmentor = build_segmentor(config.network, seed).to(device)
        self.adversarial_loss = AdversarialLoss(config.loss)
        # Without an adversary C is there, is never called, and stays as it was made.
        self.critic: Critic = build_critic(
            config.network, seed + 1, self.adversarial_loss.scalar
        ).to(device)
        self.precision.to_memory_format(self.segmentor)
        self.precision.to_memory_format(self.critic)
        self.ddp_segmentor = _wrap_ddp(self.segmentor, device)
        self.ddp_critic = _wrap_ddp(self.critic, device)
        rate, betas = config.optimizer.learning_rate, config.optimizer.betas
        # Fused, Adam reads `found_inf` on the device: at 1 it leaves weights and moments alone.
        self.fused = device.type == "cuda"
        self.segmentor_optimizer = Adam(self.segmentor.parameters(), rate, betas, fused=self.fused)
        self.critic_optimizer = Adam(self.critic.parameters(), rate, betas, fused=self.fused)
        # 1 from the first gradient on that was not finite: of C and of S, the same on every rank.
        self.found_inf = torch.zeros(2, dtype=torch.float32, device=device)
        ema_decay = config.training.ema_decay
        self.ema = EMA(self.segmentor, ema_decay) if ema_decay > 0 else None

    @property
    def eval_segmentor(self) -> Segmentor:
        """The segmentor for use: S, or the average of its weights."""
        return self.ema.network if self.ema else self.segmentor

    def set_learning_rate(self, rate: float) -> None:
        for optimizer in (self.segmentor_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def train_step(self, image: Tensor, truth: Tensor) -> Losses:
        """One step of C that raises the loss, the clamp, then one step of S that lowers it.

        S's maps do not change between the two, so one forward of S serves both. From a loss or
        gradient on that is not finite, on any rank, neither network is updated any more.

        Args:
            image: [B, 3, H, W] in [0, 1].
            truth: [B, classes, H, W], 0 or 1.
        """
        self.precision.mark_step_begin()
        predicted = self.precision(self.ddp_segmentor, image)
        masked_truth = mask_image(image, truth)
        critic_loss = torch.zeros((), device=image.device)
        if self.adversarial_loss.enabled:
            critic_loss = self._step_critic(mask_image(image, predicted.detach()), masked_truth)
        segmentor_loss, dice = self._step_segmentor(image, predicted, truth, masked_truth)
        return Losses(critic_loss, segmentor_loss, dice)

    def is_finite_on_this_rank(self, image: Tensor, truth: Tensor) -> bool:
        """Whether losses and gradients of this rank alone are finite, by the weights as they are.

        Changes nothing but S's running statistics, and waits for the device.
        """
        predicted = self.precision(self.segmentor, image)
        masked_truth = mask_image(image, truth)
        values: list[Tensor] = []
        if self.adversarial_loss.enabled:
            self.critic.requires_grad_(True)
            masked_predicted = mask_image(image, predicted.detach())
            loss = self._critic_loss(self.critic, masked_predicted, masked_truth)
            values += [loss, *torch.autograd.grad(loss, list(self.critic.parameters()))]
        _, _, total = self._segmentor_losses(image, predicted, truth, masked_truth)
        values += [total, *torch.autograd.grad(total, list(self.segmentor.parameters()))]
        return all(bool(value.isfinite().all()) for value in values)

    def _step_critic(self, masked_predicted: Tensor, masked_truth: Tensor) -> Tensor:
        self.critic.requires_grad_(True)
        loss = self._critic_loss(self.ddp_critic, masked_predicted, masked_truth)
        self.critic_optimizer.zero_grad(set_to_none=True)
        (-_poison_if_nonfinite(loss)).backward()
        self._optimizer_step(self.critic_optimizer, self.critic, 0)
        if self.config.optimizer.weight_clip is not None:
            # After no update this finds nothing to do: C was brought into the box a step before.
            self.critic.clip_weights(
                self.config.optimizer.weight_clip, self.config.optimizer.weight_clip_scope
            )
        return loss.detach()

    def _step_segmentor(
        self, image: Tensor, predicted: Tensor, truth: Tensor, masked_truth: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, dice, total = self._segmentor_losses(image, predicted, truth, masked_truth)
        self.segmentor_optimizer.zero_grad(set_to_none=True)
        _poison_if_nonfinite(total).backward()
        self._optimizer_step(self.segmentor_optimizer, self.segmentor, 1)
        return loss.detach(), dice.detach()

    def _critic_loss(
        self, critic: torch.nn.Module, masked_predicted: Tensor, masked_truth: Tensor
    ) -> Tensor:
        # Two calls, never one on both halves together: batch statistics must not mix.
        levels = self.precision(critic, masked_predicted), self.precision(critic, masked_truth)
        return self.adversarial_loss.critic_objective(*levels)

    def _segmentor_losses(
        self, image: Tensor, predicted: Tensor, truth: Tensor, masked_truth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What C and the cross-entropy say of S, its Dice loss, and what it lowers of the two."""
        # C is only passed through here: no gradient for its weights, so nothing to exchange
        # between ranks, and the bare network rather than its DDP wrapper.
        self.critic.requires_grad_(False)
        adversarial = None
        if self.adversarial_loss.enabled:
            with torch.no_grad():
                truth_levels = self.precision(self.critic, masked_truth)
            predicted_levels = self.precision(self.critic, mask_image(image, predicted))
            adversarial = self.adversarial_loss.segmentor_term(predicted_levels, truth_levels)
        loss = weighted_segmentor_loss(adversarial, predicted, truth, self.config.loss)
        weight = self.config.loss.dice_weight
        dice = dice_loss(predicted if weight > 0 else predicted.detach(), truth)
        return loss, dice, loss + weight * dice if weight > 0 else loss

    @torch.no_grad()
    def _optimizer_step(self, optimizer: Adam, network: torch.nn.Module, index: int) -> None:
        """A step of the optimiser if all gradients so far were finite; no GPU is waited for."""
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        max_gradient = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
        self.found_inf[index] = torch.maximum(
            self.found_inf[index], (~max_gradient.isfinite()).float()
        )
        if self.fused:
            optimizer.found_inf = self.found_inf.amax()  # type: ignore[attr-defined]
            optimizer.step()
        elif not self.found_inf.any():
            optimizer.step()


def _poison_if_nonfinite(loss: Tensor) -> Tensor:
    """The loss times 1, or times NaN where it is not finite.

    Every gradient is then not finite, and DDP's mean tells all ranks of what one of them met.
    """
    return loss * (1 + 0 * loss.detach())


def _wrap_ddp(network: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    # Buffers are not broadcast: C has none, and S's running statistics are averaged where they
    # are used. A broadcast between two forwards of one backward would be an in-place error.
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
