"""Networks to analyse, and the initialisers that set their scale."""

from lca_widgets.models.layers import Divide, SeededDropout
from lca_widgets.models.mlp import ACTIVATIONS, INITIALISERS, NORMS, WeightNormalised, mlp
from lca_widgets.models.residual import FINAL_NORMS, ResidualNetwork, residual_mlp, resnet

__all__ = [
    "ACTIVATIONS",
    "FINAL_NORMS",
    "INITIALISERS",
    "NORMS",
    "Divide",
    "ResidualNetwork",
    "SeededDropout",
    "WeightNormalised",
    "mlp",
    "residual_mlp",
    "resnet",
]
