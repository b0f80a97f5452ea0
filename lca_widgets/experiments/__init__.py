"""The paper's experiments as plain functions: settings in, records out."""

from lca_widgets.experiments.conditioning import (
    ConditioningSettings,
    conditioning,
    matched,
    unit_ranks,
)
from lca_widgets.experiments.curvature_matrices import (
    CurvatureSettings,
    block_comparison,
    curvature_matrices,
)
from lca_widgets.experiments.false_minimum import (
    FalseMinimumSettings,
    false_minimum,
    plateau_outcome,
)
from lca_widgets.experiments.final_norm import FinalNormSettings, final_norm
from lca_widgets.experiments.final_norm_rates import FinalNormRateSettings, final_norm_rates
from lca_widgets.experiments.freezing import FreezingSettings, freezing, frozen_training
from lca_widgets.experiments.last_layer import (
    LastLayerSettings,
    last_layer,
    last_layer_training,
)
from lca_widgets.experiments.learning_rates import LearningRateSettings, learning_rates
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
from lca_widgets.experiments.sweep import sweep
from lca_widgets.experiments.weight_domination import (
    DominationSettings,
    dominated_training,
    weight_domination,
)

__all__ = [
    "ConditioningSettings",
    "CurvatureSettings",
    "DominationSettings",
    "FalseMinimumSettings",
    "FinalNormRateSettings",
    "FinalNormSettings",
    "FreezingSettings",
    "LastLayerSettings",
    "LearningRateSettings",
    "LinearSettings",
    "MagnitudeSettings",
    "QuadraticSettings",
    "SampleSizeSettings",
    "ScalingSettings",
    "block_comparison",
    "conditioning",
    "curvature_matrices",
    "dominated_training",
    "false_minimum",
    "final_norm",
    "final_norm_rates",
    "freezing",
    "frozen_training",
    "iterations_to_reach",
    "kappa_sweep",
    "last_layer",
    "last_layer_training",
    "learning_rates",
    "linear_training",
    "log_log_slope",
    "magnitude",
    "matched",
    "plateau_outcome",
    "preparation_sweep",
    "quadratic",
    "sample_size",
    "scaling",
    "sweep",
    "unit_ranks",
    "weight_domination",
]
