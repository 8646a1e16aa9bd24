"""Settings of a run: their types and ranges, overriding them, views, and the recipes."""

from matrix_ssl.config.override import Assignment, build, changes, flatten, override, split_assignment
from matrix_ssl.config.settings import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAY_CHANGE,
    DataConfig,
    Locations,
    MethodConfig,
    NetworkConfig,
    OptimizerConfig,
    Precision,
    RunConfig,
    StartConfig,
    ViewConfig,
    current_names,
    differences,
    from_dict,
    to_dict,
)
from matrix_ssl.config.validation import Fraction, Seed, check_type, settings

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "MAY_CHANGE", "Assignment", "DataConfig", "Fraction", "Locations", "MethodConfig",
    "NetworkConfig", "OptimizerConfig", "Precision", "RunConfig", "Seed", "StartConfig", "ViewConfig", "build",
    "changes", "check_type", "current_names", "differences", "flatten", "from_dict", "override", "settings",
    "split_assignment", "to_dict",
]  # fmt: skip
