"""Per-layer curvature: second moments, exact blocks, operators, spectra. Imports torch alone."""

from lca_widgets.curvature.blocks import BlockComparison, Blocks, compare_blocks, exact_blocks
from lca_widgets.curvature.capture import Capture, LayerCall, supported_layers
from lca_widgets.curvature.factors import (
    FactorCapture,
    Factors,
    LayerFactors,
    kronecker_factors,
)
from lca_widgets.curvature.lanczos import (
    Eigenvalues,
    NotConverged,
    SpectralDensity,
    TraceEstimate,
    spectral_density,
    top_eigenvalues,
    trace,
)
from lca_widgets.curvature.operators import CurvatureOperator, fisher, ggn, hessian
from lca_widgets.curvature.sampling import (
    Interval,
    Intervals,
    group_moments,
    sampling_intervals,
)
from lca_widgets.curvature.spectrum import (
    KroneckerSpectrum,
    LayerSpectra,
    SampleWarning,
    Spectrum,
    gram_spectrum,
    largest_eigenvalues,
    layer_spectra,
    moment_spectra,
    one_thread,
    row_spectrum,
)

__all__ = [
    "BlockComparison",
    "Blocks",
    "Capture",
    "CurvatureOperator",
    "Eigenvalues",
    "FactorCapture",
    "Factors",
    "Interval",
    "Intervals",
    "KroneckerSpectrum",
    "LayerCall",
    "LayerFactors",
    "LayerSpectra",
    "NotConverged",
    "SampleWarning",
    "SpectralDensity",
    "Spectrum",
    "TraceEstimate",
    "compare_blocks",
    "exact_blocks",
    "fisher",
    "ggn",
    "gram_spectrum",
    "group_moments",
    "hessian",
    "kronecker_factors",
    "largest_eigenvalues",
    "layer_spectra",
    "moment_spectra",
    "one_thread",
    "row_spectrum",
    "sampling_intervals",
    "spectral_density",
    "supported_layers",
    "top_eigenvalues",
    "trace",
]
