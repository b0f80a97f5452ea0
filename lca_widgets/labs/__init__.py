"""Live labs, one for each phenomenon; each is a widget, and ``.run(...)`` does it headless."""

from lca_widgets.labs.curvature_matrices import CurvatureMatrices
from lca_widgets.labs.linear_training import LinearTraining
from lca_widgets.labs.magnitude import Magnitude
from lca_widgets.labs.quadratic import Quadratic
from lca_widgets.labs.sample_size import SampleSize
from lca_widgets.labs.scaling import Scaling

__all__ = ["CurvatureMatrices", "LinearTraining", "Magnitude", "Quadratic", "SampleSize", "Scaling"]
