"""Live labs, one for each phenomenon; each is a widget, and ``.run(...)`` does it headless."""

from lca_widgets.labs.conditioning import Conditioning
from lca_widgets.labs.curvature_matrices import CurvatureMatrices
from lca_widgets.labs.false_minimum import FalseMinimum
from lca_widgets.labs.final_norm import FinalNorm
from lca_widgets.labs.final_norm_rates import FinalNormRates
from lca_widgets.labs.freezing import Freezing
from lca_widgets.labs.last_layer import LastLayer
from lca_widgets.labs.learning_rates import LearningRates
from lca_widgets.labs.linear_training import LinearTraining
from lca_widgets.labs.magnitude import Magnitude
from lca_widgets.labs.quadratic import Quadratic
from lca_widgets.labs.sample_size import SampleSize
from lca_widgets.labs.scaling import Scaling
from lca_widgets.labs.weight_domination import WeightDomination

__all__ = [
    "Conditioning",
    "CurvatureMatrices",
    "FalseMinimum",
    "FinalNorm",
    "FinalNormRates",
    "Freezing",
    "LastLayer",
    "LearningRates",
    "LinearTraining",
    "Magnitude",
    "Quadratic",
    "SampleSize",
    "Scaling",
    "WeightDomination",
]
