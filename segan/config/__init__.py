"""The configuration of a run: its schema with the paper's defaults, and how it is loaded."""

from segan.config.augment import AugmentConfig
from segan.config.load import format_value, load_config, parse_config, shipped_configs
from segan.config.schema import (
    ClusterConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    LogisticConfig,
    LossConfig,
    NetworkConfig,
    OptimizerConfig,
    PerformanceConfig,
    TrainingConfig,
)
from segan.config.search import AblationConfig, SearchConfig
from segan.config.validation import iter_fields

__all__ = [
    "AblationConfig",
    "AugmentConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "EvaluationConfig",
    "LogisticConfig",
    "LossConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "PerformanceConfig",
    "SearchConfig",
    "TrainingConfig",
    "format_value",
    "iter_fields",
    "load_config",
    "parse_config",
    "shipped_configs",
]
