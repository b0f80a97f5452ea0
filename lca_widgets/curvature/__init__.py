"""Per-layer curvature: captured second moments and their spectra. Imports torch alone."""

from lca_widgets.curvature.capture import Capture, LayerCall, supported_layers
from lca_widgets.curvature.factors import (
    FactorCapture,
    Factors,
    LayerFactors,
    kronecker_factors,
)
from lca_widgets.curvature.spectrum import (
    LayerSpectra,
    SampleWarning,
    Spectrum,
    layer_spectra,
    moment_spectra,
    one_thread,
)

__all__ = [
    "Capture",
    "FactorCapture",
    "Factors",
    "LayerCall",
    "LayerFactors",
    "LayerSpectra",
    "SampleWarning",
    "Spectrum",
    "kronecker_factors",
    "layer_spectra",
    "moment_spectra",
    "one_thread",
    "supported_layers",
]
