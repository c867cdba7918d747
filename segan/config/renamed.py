"""Configuration keys and values with a new name; an error about an old one names the new one."""

from __future__ import annotations

from typing import Any

RENAMED_KEYS = {
    "network.global_from": "network.global_conv_min_kernel",
    "network.residual_width": "network.residual_expansion",
    "network.residual_cap": "network.residual_max_width",
    "logistic.every": "logistic.decay_every_epochs",
    "logistic.scaled": "logistic.stretch_to_run",
    "loss.adversary": "loss.critic",
    "loss.adversary_weight": "loss.adversarial_weight",
    "loss.reading": "loss.reduction",
    "optimizer.workers_rule": "optimizer.lr_scaling",
    "optimizer.warmup": "optimizer.warmup_fraction",
    "optimizer.clamp": "optimizer.weight_clip",
    "optimizer.clamp_scope": "optimizer.weight_clip_scope",
    "training.ema": "training.ema_decay",
    "training.validate_every": "training.validate_every_epochs",
    "training.checkpoint_every": "training.checkpoint_every_steps",
    "training.log_every": "training.log_every_steps",
    "performance.compile": "performance.compile_mode",
    "evaluation.frame": "evaluation.resize_mode",
    "evaluation.flips": "evaluation.tta",
    "cluster.wait_seconds": "cluster.resource_timeout_s",
    "search.method": "search.algorithm",
    "search.clamp": "search.weight_clip",
    "search.concurrent": "search.max_concurrent_trials",
    "ablation.diverged_below": "ablation.divergence_threshold",
}
RENAMED_VALUES = {  # by the new key
    "performance.compile_mode": {
        "off": "none",
        "kernels": "default",
        "graphs": "reduce-overhead",
    },
    "evaluation.resize_mode": {"whole": "native", "padded": "pad", "resized": "resize"},
}


def describe_rename(key: str, value: Any) -> str:
    """Says what an old key or an old value of a key is called now; "" where neither is old."""
    new_key = RENAMED_KEYS.get(key)
    values = RENAMED_VALUES.get(new_key or key, {})
    new_value = values.get(value) if isinstance(value, str) else None
    if new_key and new_value:
        return f"renamed to {new_key}, and its value {value!r} to {new_value!r}"
    if new_key:
        return f"renamed to {new_key}"
    return f"the value {value!r} was renamed to {new_value!r}" if new_value else ""
