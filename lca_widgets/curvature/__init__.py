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
from lca_widgets.curvature.measurement import LayerMeasurement, ModelMeasurement, measure
from lca_widgets.curvature.operators import CurvatureOperator, fisher, ggn, hessian
from lca_widgets.curvature.rectifiers import UnitActivity
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
from lca_widgets.curvature.weights import WeightNorms

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
    "LayerMeasurement",
    "LayerSpectra",
    "ModelMeasurement",
    "NotConverged",
    "SampleWarning",
    "SpectralDensity",
    "Spectrum",
    "TraceEstimate",
    "UnitActivity",
    "WeightNorms",
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
    "measure",
    "moment_spectra",
    "one_thread",
    "row_spectrum",
    "sampling_intervals",
    "spectral_density",
    "supported_layers",
    "top_eigenvalues",
    "trace",
]
