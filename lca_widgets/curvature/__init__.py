"""Per-layer curvature: captured second moments and their spectra. Imports torch alone."""

from lca_widgets.curvature.capture import Capture, supported_layers
from lca_widgets.curvature.factors import FactorCapture, LayerFactors
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
    "LayerFactors",
    "LayerSpectra",
    "SampleWarning",
    "Spectrum",
    "layer_spectra",
    "moment_spectra",
    "one_thread",
    "supported_layers",
]
