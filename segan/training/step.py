"""One alternating update of critic and segmentor (section 2): the heart of the method."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Adam

from segan.config import Config
from segan.losses import Game, dice_loss, weighed
from segan.networks.critic import Critic, build_critic, mask_image
from segan.networks.segmentor import Segmentor, build_segmentor
from segan.training.arithmetic import Arithmetic
from segan.training.average import Average


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


class Adversaries:
    """Segmentor and critic with an optimiser each, wrapped for DDP at any number of ranks.

    A process group must be up, of one rank too: there is one path for 1 and for n workers.
    """

    def __init__(self, config: Config, device: torch.device):
        seed = config.training.seed
        self.config = config
        self.compute = Arithmetic(config.performance, device)
        self.segmentor: Segmentor = build_segmentor(config.network, seed).to(device)
        self.game = Game(config.loss)
        # Without an adversary C is there, is never called, and stays as it was made.
        self.critic: Critic = build_critic(config.network, seed + 1, self.game.scalar).to(device)
        self.compute.lay_out(self.segmentor)
        self.compute.lay_out(self.critic)
        self.ddp_segmentor = _distribute(self.segmentor, device)
        self.ddp_critic = _distribute(self.critic, device)
        rate, betas = config.optimizer.learning_rate, config.optimizer.betas
        # Fused, Adam reads `found_inf` on the device: at 1 it leaves weights and moments alone.
        self.fused = device.type == "cuda"
        self.segmentor_optimizer = Adam(self.segmentor.parameters(), rate, betas, fused=self.fused)
        self.critic_optimizer = Adam(self.critic.parameters(), rate, betas, fused=self.fused)
        # 1 from the first gradient on that was not finite: of C and of S, the same on every rank.
        self.not_finite = torch.zeros(2, dtype=torch.float32, device=device)
        ema = config.training.ema
        self.average = Average(self.segmentor, ema) if ema > 0 else None

    @property
    def product(self) -> Segmentor:
        """The segmentor for use: S, or the average of its weights."""
        return self.average.network if self.average else self.segmentor

    def set_learning_rate(self, rate: float) -> None:
        for optimizer in (self.segmentor_optimizer, self.critic_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self, image: Tensor, truth: Tensor) -> Losses:
        """One step of C that raises the loss, the clamp, then one step of S that lowers it.

        S's maps do not change between the two, so one forward of S serves both. From a loss or
        gradient on that is not finite, on any rank, neither network is updated any more.

        Args:
            image: [B, 3, H, W] in [0, 1].
            truth: [B, classes, H, W], 0 or 1.
        """
        self.compute.begin_step()
        predicted = self.compute(self.ddp_segmentor, image)
        masked_truth = mask_image(image, truth)
        critic_loss = torch.zeros((), device=image.device)
        if self.game.played:
            critic_loss = self._step_critic(mask_image(image, predicted.detach()), masked_truth)
        segmentor_loss, dice = self._step_segmentor(image, predicted, truth, masked_truth)
        return Losses(critic_loss, segmentor_loss, dice)

    def finite_here(self, image: Tensor, truth: Tensor) -> bool:
        """Whether losses and gradients of this rank alone are finite, by the weights as they are.

        Changes nothing but S's running statistics, and waits for the device.
        """
        predicted = self.compute(self.segmentor, image)
        masked_truth = mask_image(image, truth)
        numbers: list[Tensor] = []
        if self.game.played:
            self.critic.requires_grad_(True)
            shown = mask_image(image, predicted.detach())
            loss = self._critic_loss(self.critic, shown, masked_truth)
            numbers += [loss, *torch.autograd.grad(loss, list(self.critic.parameters()))]
        _, _, total = self._segmentor_losses(image, predicted, truth, masked_truth)
        numbers += [total, *torch.autograd.grad(total, list(self.segmentor.parameters()))]
        return all(bool(value.isfinite().all()) for value in numbers)

    def _step_critic(self, masked_predicted: Tensor, masked_truth: Tensor) -> Tensor:
        self.critic.requires_grad_(True)
        loss = self._critic_loss(self.ddp_critic, masked_predicted, masked_truth)
        self.critic_optimizer.zero_grad(set_to_none=True)
        (-_telling(loss)).backward()
        self._update(self.critic_optimizer, self.critic, 0)
        if self.config.optimizer.clamp is not None:
            # After no update this finds nothing to do: C was brought into the box a step before.
            self.critic.clamp(self.config.optimizer.clamp, self.config.optimizer.clamp_scope)
        return loss.detach()

    def _step_segmentor(
        self, image: Tensor, predicted: Tensor, truth: Tensor, masked_truth: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, dice, total = self._segmentor_losses(image, predicted, truth, masked_truth)
        self.segmentor_optimizer.zero_grad(set_to_none=True)
        _telling(total).backward()
        self._update(self.segmentor_optimizer, self.segmentor, 1)
        return loss.detach(), dice.detach()

    def _critic_loss(
        self, critic: torch.nn.Module, masked_predicted: Tensor, masked_truth: Tensor
    ) -> Tensor:
        # Two calls, never one on both halves together: batch statistics must not mix.
        levels = self.compute(critic, masked_predicted), self.compute(critic, masked_truth)
        return self.game.raised_by_critic(*levels)

    def _segmentor_losses(
        self, image: Tensor, predicted: Tensor, truth: Tensor, masked_truth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What C and the cross-entropy say of S, its Dice loss, and what it lowers of the two."""
        # C is only passed through here: no gradient for its weights, so nothing to exchange
        # between ranks, and the bare network rather than its DDP wrapper.
        self.critic.requires_grad_(False)
        adversarial = None
        if self.game.played:
            with torch.no_grad():
                of_truth = self.compute(self.critic, masked_truth)
            of_predicted = self.compute(self.critic, mask_image(image, predicted))
            adversarial = self.game.lowered_by_segmentor(of_predicted, of_truth)
        loss = weighed(adversarial, predicted, truth, self.config.loss)
        weight = self.config.loss.dice_weight
        dice = dice_loss(predicted if weight > 0 else predicted.detach(), truth)
        return loss, dice, loss + weight * dice if weight > 0 else loss

    @torch.no_grad()
    def _update(self, optimizer: Adam, network: torch.nn.Module, which: int) -> None:
        """A step of the optimiser if all gradients so far were finite; no GPU is waited for."""
        gradients = [p.grad for p in network.parameters() if p.grad is not None]
        greatest = torch.nn.utils.get_total_norm(gradients, norm_type=math.inf)
        self.not_finite[which] = torch.maximum(
            self.not_finite[which], (~greatest.isfinite()).float()
        )
        if self.fused:
            optimizer.found_inf = self.not_finite.amax()  # type: ignore[attr-defined]
            optimizer.step()
        elif not self.not_finite.any():
            optimizer.step()


def _telling(loss: Tensor) -> Tensor:
    """The loss times 1, or times NaN where it is not finite.

    Every gradient is then not finite, and DDP's mean tells all ranks of what one of them met.
    """
    return loss * (1 + 0 * loss.detach())


def _distribute(network: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    # Buffers are not broadcast: C has none, and S's running statistics are averaged where they
    # are used. A broadcast between two forwards of one backward would be an in-place error.
    return DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        forward_sync_buffers=False,
        gradient_as_bucket_view=True,
    )
