"""The paper's experiments as plain functions: settings in, records out."""

from lca_widgets.experiments.curvature_matrices import (
    CurvatureSettings,
    block_comparison,
    curvature_matrices,
)
from lca_widgets.experiments.linear_training import (
    LinearSettings,
    iterations_to_reach,
    kappa_sweep,
    linear_training,
    log_log_slope,
    preparation_sweep,
)
from lca_widgets.experiments.magnitude import MagnitudeSettings, magnitude
from lca_widgets.experiments.quadratic import QuadraticSettings, quadratic
from lca_widgets.experiments.sample_size import SampleSizeSettings, sample_size
from lca_widgets.experiments.scaling import ScalingSettings, scaling

__all__ = [
    "CurvatureSettings",
    "LinearSettings",
    "MagnitudeSettings",
    "QuadraticSettings",
    "SampleSizeSettings",
    "ScalingSettings",
    "block_comparison",
    "curvature_matrices",
    "iterations_to_reach",
    "kappa_sweep",
    "linear_training",
    "log_log_slope",
    "magnitude",
    "preparation_sweep",
    "quadratic",
    "sample_size",
    "scaling",
]
