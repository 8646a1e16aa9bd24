"""Settings of a run: their types and ranges, overrides, views and recipes.

Names are loaded on first use, because a method's file refers to settings while its loss needs only PyTorch.
"""

from typing import TYPE_CHECKING

from matrix_ssl.errors import load_on_use

if TYPE_CHECKING:
    from annotated_types import Ge, Gt, Le
    from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

    from matrix_ssl.config.assignments import (
        Assignment,
        build,
        changes,
        check_agreement,
        flatten,
        override,
        split_assignment,
    )
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
        completed,
        current_names,
        differences,
        from_dict,
        identifying,
        to_dict,
    )
    from matrix_ssl.config.validation import Fraction, OpenFraction, Seed, check_type
    from matrix_ssl.config.views import asymmetric_views, symmetric_view

__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "MAY_CHANGE", "Assignment", "DataConfig", "Fraction", "Ge", "Gt", "Le",
    "Locations", "MethodConfig", "NetworkConfig", "NonNegativeFloat", "NonNegativeInt", "OpenFraction",
    "OptimizerConfig", "PositiveFloat", "PositiveInt", "Precision", "RunConfig", "Seed", "StartConfig", "ViewConfig",
    "asymmetric_views", "build", "changes", "check_agreement", "check_type", "completed", "current_names",
    "differences", "flatten", "from_dict", "identifying", "override", "split_assignment", "symmetric_view", "to_dict",
]  # fmt: skip

__getattr__ = load_on_use(
    __name__, __all__,
    ("matrix_ssl.config.settings", "matrix_ssl.config.assignments", "matrix_ssl.config.validation",
     "matrix_ssl.config.views", "pydantic", "annotated_types"),
)  # fmt: skip
