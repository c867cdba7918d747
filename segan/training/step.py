"""One training step: an update of the critic, then one of the segmentor (section 2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

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
from segan.training.timer import Stage, StageTimer

LOSS_NAMES = ("critic_loss", "segmentor_loss", "dice_loss")


@dataclass
class Losses:
    """The losses of one step, as scalars on the device; reading one waits for the device.

    Attributes:
        critic_loss: C's objective before its update, which C maximises; 0 without a critic.
        segmentor_loss: S's loss without the Dice term, by the updated and clipped C.
        dice_loss: of S's maps; part of S's loss only if its weight is above 0.
    """

    critic_loss: Tensor
    segmentor_loss: Tensor
    dice_loss: Tensor

    def stack(self) -> Tensor:
        """Returns them as one tensor [3], in the order of LOSS_NAMES."""
        return torch.stack([self.critic_loss, self.segmentor_loss, self.dice_loss])


class SegAN:
    """Segmentor and critic with their optimisers, wrapped in DDP.

    A process group must be initialised, also for one rank: 1 and n workers share one code path.

    Attributes:
        found_inf: float32 [2], of C and of S: 1 once a gradient was not finite, else 0; equal on
            every rank.
    """

    optimizer_class: ClassVar[type[Adam]] = Adam

    def __init__(self, config: Config, device: torch.device, stage_timer: StageTimer | None = None):
        seed = config.training.seed
        self.config, self.stage_timer = config, stage_timer or StageTimer(device)
        self.precision = PrecisionPolicy(config.performance, device)
        self.adversarial_loss = AdversarialLoss(config.loss)
        self.segmentor: Segmentor = self._build_segmentor(seed).to(device)
        # Without an adversarial loss, C exists but is never called or updated.
        self.critic: Critic = self._build_critic(seed + 1).to(device)
        self.precision.to_memory_format(self.segmentor)
        self.precision.to_memory_format(self.critic)
        self.ddp_segmentor = _wrap_ddp(self.segmentor, device)
        self.ddp_critic = _wrap_ddp(self.critic, device)
        rate, betas = config.optimizer.learning_rate, config.optimizer.betas
        # A fused Adam reads `found_inf` on the device, and skips the update if it is 1.
        self.fused = device.type == "cuda"
        self.segmentor_optimizer, self.critic_optimizer = (
            self.optimizer_class(network.parameters(), rate, betas, fused=self.fused)
            for network in (self.segmentor, self.critic)
        )
        self.found_inf = torch.zeros(2, dtype=torch.float32, device=device)
        ema_decay = config.training.ema_decay
        self.ema = EMA(self.segmentor, ema_decay) if ema_decay > 0 else None

    def _build_segmentor(self, seed: int) -> Segmentor:
        return build_segmentor(self.config.network, seed)

    def _build_critic(self, seed: int) -> Critic:
        return build_critic(self.config.network, seed, self.adversarial_loss.scalar)

    @property
    def eval_segmentor(self) -> Segmentor:
        """The segmentor to evaluate and to export: the EMA of S if there is one, else S."""
        return self.ema.network if self.ema else self.segmentor

    def set_learning_rates(self, segmentor: float, critic: float) -> None:
        for optimizer, rate in (
            (self.segmentor_optimizer, segmentor),
            (self.critic_optimizer, critic),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def train_step(self, image: Tensor, truth: Tensor) -> Losses:
        """Updates C to raise its objective, clips its weights, then updates S to lower its loss.

        Both updates share one forward pass of S. Once a loss or gradient is not finite on any
        rank, neither network is updated any more.

        Args:
            image: [B, 3, H, W] in [0, 1].
            truth: [B, classes, H, W], 0 or 1.
        """
        self.precision.begin_step()
        with self.stage_timer.stage(Stage.SEGMENTOR):
            predicted = self.precision(self.ddp_segmentor, image)
        masked_truth = mask_image(image, truth)
        critic_loss = torch.zeros((), device=image.device)
        if self.adversarial_loss.enabled:
            with self.stage_timer.stage(Stage.CRITIC):
                critic_loss = self._step_critic(mask_image(image, predicted.detach()), masked_truth)
        with self.stage_timer.stage(Stage.SEGMENTOR):
            segmentor_loss, dice = self._step_segmentor(image, predicted, truth, masked_truth)
        return Losses(critic_loss, segmentor_loss, dice)

    def all_reduce_seconds_per_step(self) -> float:
        """Mean seconds that a step's backward passes have waited for the exchange of gradients.

        As DDP measures it: on CPUs in each step, on a GPU in a sample of them.
        """
        nanoseconds = 0
        for network in (self.ddp_segmentor, self.ddp_critic):
            measured = network._get_ddp_logging_data()
            exchange = measured.get("avg_backward_comm_time", 0)
            nanoseconds += exchange - measured.get("avg_backward_compute_comm_overlap_time", 0)
        return nanoseconds / 1e9

    def is_finite_on_this_rank(self, image: Tensor, truth: Tensor) -> bool:
        """Returns whether this rank's own losses and gradients are finite for a batch.

        Updates S's batch-norm statistics and nothing else. Waits for the device.
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
            # Without an update this changes nothing: the previous step has clipped already.
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
        # Two calls, since the batch statistics of the two inputs must not mix.
        levels = self.precision(critic, masked_predicted), self.precision(critic, masked_truth)
        return self.adversarial_loss.critic_objective(*levels)

    def _segmentor_losses(
        self, image: Tensor, predicted: Tensor, truth: Tensor, masked_truth: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (adversarial + cross-entropy loss, Dice loss, total loss) of the segmentor."""
        # Gradients pass through C but not into its weights, so there is nothing to exchange
        # between ranks: the network without its DDP wrapper.
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
        """Steps the optimiser if all gradients so far are finite, without waiting for a GPU."""
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
    """Returns the loss, or NaN with NaN gradients if the loss is not finite.

    DDP's mean of the gradients then shows it to all ranks.
    """
    return loss * (1 + 0 * loss.detach())


def _wrap_ddp(network: torch.nn.Module, device: torch.device) -> DistributedDataParallel:
    ddp = DistributedDataParallel(
        network,
        device_ids=[device] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    # Buffers are not broadcast: C has none, and S's batch-norm statistics are averaged before
    # they are used. A broadcast between two forwards of one backward is an in-place error.
    # As an attribute, since the argument's name depends on torch's version.
    ddp.broadcast_buffers = False
    if device.type == "cpu":  # on a GPU, a measured step is waited for
        ddp._set_ddp_runtime_logging_sample_rate(1)
    return ddp
