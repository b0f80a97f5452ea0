"""Four curvature matrices of one small network, and how well layer blocks stand for them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from lca_widgets._checks import require_in_range, require_integer, require_one_of
from lca_widgets.curvature import (
    Blocks,
    CurvatureOperator,
    LayerSpectra,
    Spectrum,
    exact_blocks,
    fisher,
    ggn,
    hessian,
    kronecker_factors,
    layer_spectra,
    moment_spectra,
    one_thread,
)
from lca_widgets.curvature.factors import LayerFactors
from lca_widgets.curvature.losses import output_gradients
from lca_widgets.curvature.moments import relative_cut
from lca_widgets.data import Split, digits
from lca_widgets.models import ACTIVATIONS, NORMS, mlp
from lca_widgets.proximal import LayerPass, layer_passes
from lca_widgets.training import StepRecord, TrainingRun, TrainingSettings

__all__ = [
    "MATRICES",
    "BlockMeasurement",
    "BlockRecord",
    "CurvatureMeasurement",
    "CurvatureSettings",
    "MatrixRecord",
    "block_comparison",
    "curvature_matrices",
    "digit_components",
    "measured_steps",
]

LABELS = ("model", "data")
MOST_DRAWN = 200  # weights of a network whose matrices are drawn: 40 000 cells each
CUT = relative_cut(torch.float64, wide=True)

# The fields of `CurvatureMeasurement` that hold a matrix, and what they are called.
MATRICES = {
    "hessian": "H",
    "ggn": "GGN",
    "fisher": "F",
    "empirical": "M",
    "kronecker": "Σ_x ⊗ Σ_g",
}


@dataclass(frozen=True)
class CurvatureSettings:
    """Settings of a small float64 network on digits, and its full-batch training.

    Attributes:
        components: Principal components of the images that the network sees, 2 to 32.
        classes: Digits 0, 1, … that it tells apart, 2 to 10.
        depth: Linear layers, the output layer included, 1 to 6.
        width: Units of a hidden layer, 2 to 32.
        activation: ``"tanh"``, ``"relu"`` or ``"linear"``.
        norm: A name among `lca_widgets.models.NORMS` but ``"weight"``, whose layers are not linear
            in their weights.
        labels: Whose labels' gradients the layers' blocks and factors are made of: ``"model"`` or
            ``"data"``. The model's are an expectation over all labels; with batch normalisation,
            which couples the samples, that would take a backward pass for each label of each
            sample, and one label is drawn for each sample instead.
        learning_rate: Step size η of gradient descent, 1e-4 to 1e4.
        steps: Updates, 0 to 100000.
        samples: Training samples, all of them in every step.
        seed: Draws the weights, and the model's labels where these are drawn.

    Raises:
        TypeError, ValueError: a field is not accepted; the message names it, the value given and
            the accepted ones.
    """

    components: int = 4
    classes: int = 3
    depth: int = 3
    width: int = 4
    activation: str = "tanh"
    norm: str = "none"
    labels: str = "model"
    learning_rate: float = 0.5
    steps: int = 100
    samples: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        """Check every field that can be checked without the data."""
        require_integer("components", self.components, low=2, high=32)
        require_integer("classes", self.classes, low=2, high=10)
        require_integer("depth", self.depth, low=1, high=6)
        require_integer("width", self.width, low=2, high=32)
        require_one_of("activation", self.activation, ACTIVATIONS)
        require_one_of("norm", self.norm, [norm for norm in NORMS if norm != "weight"])
        require_one_of("labels", self.labels, LABELS)
        require_in_range("learning_rate", self.learning_rate, low=1e-4, high=1e4)
        require_integer("steps", self.steps, low=0, high=100_000)
        # Batch normalisation needs two samples to have a variance.
        require_integer("samples", self.samples, low=2)
        require_integer("seed", self.seed, low=0, high=2**31 - 1)


@dataclass(frozen=True)
class BlockRecord:
    """A layer's exact block beside its Kronecker approximation, at one step.

    Attributes:
        layer: Position among the layers, 1 is nearest to the input.
        name: Qualified name in the model.
        d_in: Inputs; the block has d_in·d_out rows.
        d_out: Outputs.
        lambda_max: λ_max of the exact block.
        lambda_max_kronecker: λ_max(Σ_x)·λ_max(Σ_g).
        kappa50: κ_50 of the exact block; infinite past the rank.
        kappa50_kronecker: κ_50 of Σ_x ⊗ Σ_g.
        rank_g: Rank of Σ_g.
        kappa_g: κ of Σ_g, all of it.
    """

    layer: int
    name: str
    d_in: int
    d_out: int
    lambda_max: float
    lambda_max_kronecker: float
    kappa50: float
    kappa50_kronecker: float
    rank_g: int
    kappa_g: float


@dataclass(frozen=True)
class BlockMeasurement:
    """One step of a training, with every layer's block and the network's whole matrix.

    Attributes:
        training: Step, loss and accuracy.
        passed: The records of every step since the last measurement, this one included.
        layers: One record a layer, from the input to the output.
        lambda_max: λ_max of the whole network's matrix, of which the layers' are the blocks.
        kappa50: Its κ_50; infinite past the rank.
        kappa50_blocks: κ_50 of its block-diagonal part.
        off_block: Share of its squared Frobenius norm that is off the block diagonal, 0 to 1.
    """

    training: StepRecord
    passed: tuple[StepRecord, ...]
    layers: tuple[BlockRecord, ...]
    lambda_max: float
    kappa50: float
    kappa50_blocks: float
    off_block: float

    @property
    def largest_block(self) -> float:
        """The largest of the blocks' λ_max: a lower bound of the whole matrix's."""
        return max(layer.lambda_max for layer in self.layers)

    @property
    def sum_of_blocks(self) -> float:
        """The sum of the blocks' λ_max: an upper bound of the whole matrix's."""
        return sum(layer.lambda_max for layer in self.layers)


@dataclass(frozen=True)
class MatrixRecord:
    """A symmetric matrix over the network's weights, layer by layer, each weight row by row.

    Attributes:
        entries: Its rows.
        eigenvalues: In descending order; below 1e-12 of the largest in size they are zeros. All
            NaN if an entry is not finite.
    """

    entries: tuple[tuple[float, ...], ...]
    eigenvalues: tuple[float, ...]

    @property
    def tensor(self) -> Tensor:
        """The matrix as a tensor, float64."""
        return torch.tensor(self.entries, dtype=torch.float64)


@dataclass(frozen=True)
class CurvatureMeasurement(BlockMeasurement):
    """One step of a training, with the matrices themselves.

    Attributes:
        hessian: H = ∇²L.
        ggn: The generalised Gauss-Newton matrix (1/N) Σ_n J_nᵀ ∇²l_n J_n.
        fisher: F = (1/N) Σ_n E_y[∇l_n ∇l_nᵀ], y from the model, as an expectation over all labels.
        empirical: M = (1/N) Σ_n r_n r_nᵀ, r_n the gradients g_n x_nᵀ of all layers with the data's
            labels and g_n = N·∂L/∂h_n. Without batch normalisation r_n is ∇l_n.
        kronecker: The blocks Σ_g ⊗ Σ_x (the order of a weight's entries row by row), zero between
            layers.
        kronecker_errors: Layer by layer, ‖Σ_g ⊗ Σ_x − block‖ / ‖block‖ in the Frobenius norm.
    """

    hessian: MatrixRecord
    ggn: MatrixRecord
    fisher: MatrixRecord
    empirical: MatrixRecord
    kronecker: MatrixRecord
    kronecker_errors: tuple[float, ...]

    def distance(self, one: str, other: str) -> float:
        """Return ‖A − B‖ / ‖B‖ in the Frobenius norm, of two matrices by the names of their fields.

        Raises:
            ValueError: there is no matrix of that name.
        """
        require_one_of("one", one, MATRICES)
        require_one_of("other", other, MATRICES)
        return _relative_distance(getattr(self, one).tensor, getattr(self, other).tensor)

    def blocks(self, name: str) -> list[Tensor]:
        """Return a matrix's diagonal blocks, layer by layer, by the name of its field.

        Raises:
            ValueError: there is no matrix of that name.
        """
        require_one_of("name", name, MATRICES)
        sizes = [layer.d_in * layer.d_out for layer in self.layers]
        rows = getattr(self, name).tensor.split(sizes)
        return [part.split(sizes, dim=1)[k] for k, part in enumerate(rows)]

    @property
    def negative_eigenvalues(self) -> int:
        """How many eigenvalues of the Hessian are below zero."""
        return sum(value < 0 for value in self.hessian.eigenvalues)


def measured_steps(steps: int) -> list[int]:
    """Return the steps that are measured: 0, 1, 2, 5, 10, 20, 50, …, and the last.

    Example:
        >>> measured_steps(30)
        [0, 1, 2, 5, 10, 20, 30]
    """
    require_integer("steps", steps, low=0)
    rounds = range(len(str(steps)))
    marks = {digit * 10**k for k in rounds for digit in (1, 2, 5)}
    return sorted({0, steps} | {mark for mark in marks if mark < steps})


@lru_cache(maxsize=8)
def digit_components(classes: int, components: int) -> Split:
    """Return the principal components of the training images of digits 0 … ``classes`` − 1.

    Args:
        classes: Digits to keep, 2 to 10.
        components: Components to keep, 1 to 32.

    Returns:
        Inputs ``[n, components]``, float64, centred, of unit mean square over all entries (the
        first component has the largest variance), and labels ``[n]``.

    Example:
        >>> digit_components(3, 4).x.shape
        torch.Size([430, 4])
    """
    from sklearn.decomposition import PCA  # takes a second to import

    require_integer("classes", classes, low=2, high=10)
    require_integer("components", components, low=1, high=32)
    train = digits().train
    kept = train.y < classes
    images = train.x[kept].double().numpy()
    scores = torch.from_numpy(PCA(components, svd_solver="full").fit_transform(images))
    return Split(scores / scores.square().mean().sqrt(), train.y[kept])


def curvature_matrices(settings: CurvatureSettings) -> Iterator[CurvatureMeasurement]:
    """Train one small network by gradient descent, with H, GGN, F and M at some of its steps.

    The matrices are over the weights of the linear layers. They are built by products with the unit
    vectors, in float64; the training is the same as without them, bit for bit.

    Args:
        settings: The network and its training; at most 200 weights.

    Yields:
        A measurement at each of `measured_steps`; fewer if the run diverges, the last one saying so
        in NaNs.

    Raises:
        ValueError: the network has more weights, or there are fewer training images.

    Source:
        Martens (2020) for the four matrices; Martens and Grosse (2015) for the Kronecker factors;
        Huang et al. (2020) for M, and for g_n under batch normalisation.

    Example:
        >>> start, after = curvature_matrices(CurvatureSettings(steps=1))
        >>> len(start.fisher.eigenvalues), start.distance("fisher", "ggn") < 1e-12
        (44, True)
    """
    run = _Run(settings)
    if run.dimension > MOST_DRAWN:
        raise ValueError(
            f"components, classes, depth and width must give at most {MOST_DRAWN} weights to draw, "
            f"got {run.dimension}; block_comparison takes larger networks"
        )
    for record, passed in run.measured():
        blocks, factors, matrices, compared = run.matrices(record)
        kronecker = torch.block_diag(
            *(torch.kron(layer.grad_moment, layer.input_moment) for layer in factors)
        )
        matrices["kronecker"] = kronecker
        fields = _fields(_block_measurement(record, passed, blocks, layer_spectra(factors)))
        yield CurvatureMeasurement(
            **fields | {name: _matrix_record(matrix) for name, matrix in matrices.items()},
            kronecker_errors=tuple(
                _relative_distance(kronecker[part, part], compared[part, part])
                for part in run.parts.values()
            ),
        )


def block_comparison(settings: CurvatureSettings) -> Iterator[BlockMeasurement]:
    """Train one network by gradient descent, comparing exact and Kronecker blocks on the way.

    As `curvature_matrices`, without the matrices: for networks too large to draw.

    Args:
        settings: The network and its training.

    Yields:
        A measurement at each of `measured_steps`; fewer if the run diverges, the last one saying so
        in NaNs.

    Raises:
        ValueError: there are fewer training images.

    Source:
        Huang et al. (2020), their comparison of the approximations, on other data.

    Example:
        >>> [start] = block_comparison(CurvatureSettings(steps=0, labels="data"))
        >>> start.largest_block <= start.lambda_max <= start.sum_of_blocks
        True
    """
    run = _Run(settings)
    for record, passed in run.measured():
        blocks, factors = run.blocks(record)
        yield _block_measurement(record, passed, blocks, layer_spectra(factors))


class _Run:
    """One training run, and what is measured between its steps."""

    def __init__(self, settings: CurvatureSettings) -> None:
        data = digit_components(settings.classes, settings.components)
        self._settings = settings
        self._batch = data.first(settings.samples)
        self._loss_fn = nn.CrossEntropyLoss()
        self._model = mlp(
            settings.components,
            settings.classes,
            depth=settings.depth,
            width=settings.width,
            activation=settings.activation,
            init="xavier",
            norm=settings.norm,
            seed=settings.seed,
        ).double()
        linear = {k: m for k, m in self._model.named_children() if isinstance(m, nn.Linear)}
        sizes = [layer.weight.numel() for layer in linear.values()]
        starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
        self.parts = {
            name: slice(starts[k], starts[k + 1]) for k, name in enumerate(linear)
        }  # of the weights, layer by layer
        self.dimension = starts[-1]

    def measured(self) -> Iterator[tuple[StepRecord, tuple[StepRecord, ...]]]:
        """Train, and stop at the steps to measure, with the records since the stop before."""
        settings = self._settings
        marks = measured_steps(settings.steps)
        passed: list[StepRecord] = []
        for record in TrainingRun(
            self._model,
            self._batch,
            TrainingSettings(settings.steps, settings.learning_rate),
            loss_fn=self._loss_fn,
        ):
            passed.append(record)
            if record.step in marks or record.diverged:
                yield record, tuple(passed)
                passed.clear()

    def blocks(self, record: StepRecord) -> tuple[Blocks, list[LayerFactors]]:
        """Measure the blocks and the factors, with the settings' labels."""
        factors = self._factors(record)
        if self._expects:
            # Of C−1 columns a sample: their Gram matrix would be larger than the matrix itself.
            return self._blocks_of(self._expected_second_moment()), factors
        return exact_blocks(self._model, self._loss_fn, self._labelled(record)), factors

    def matrices(
        self, record: StepRecord
    ) -> tuple[Blocks, list[LayerFactors], dict[str, Tensor], Tensor]:
        """Build the four matrices; also the one whose blocks the factors stand for."""
        arguments = (self._model, self._loss_fn, (self._batch.x, self._batch.y))
        matrices = {
            "hessian": self._dense(hessian(*arguments, layers=self.parts)),
            "ggn": self._dense(ggn(*arguments, layers=self.parts)),
            "fisher": self._dense(self._fisher()),
            "empirical": self._second_moment(self._batch.y),
        }
        compared = matrices["fisher" if self._expects else "empirical"]
        if not self._expects and self._settings.labels == "model":
            compared = self._second_moment(self._labelled(record)[1])
        return self._blocks_of(compared), self._factors(record), matrices, compared

    @property
    def _expects(self) -> bool:
        """Whether the labels are an expectation over all that the model may give."""
        return self._settings.labels == "model" and self._settings.norm == "none"

    def _factors(self, record: StepRecord) -> list[LayerFactors]:
        return kronecker_factors(
            self._model,
            self._loss_fn,
            self._labelled(record),
            fisher="exact" if self._expects else "empirical",
        ).layers

    def _labelled(self, record: StepRecord) -> tuple[Tensor, Tensor]:
        """The samples with the data's labels, or with one drawn from the model for each."""
        x, y = self._batch.x, self._batch.y
        if self._expects or self._settings.labels == "data" or record.diverged:
            return x, y
        seed = self._settings.seed + 1_000_003 * record.step
        generator = torch.Generator().manual_seed(seed)
        outputs = self._passes(y)[-1].outputs
        return x, torch.multinomial(outputs.softmax(dim=1), 1, generator=generator)[:, 0]

    def _passes(self, labels: Tensor) -> list[LayerPass]:
        return list(layer_passes(self._model, self._loss_fn, (self._batch.x, labels)).values())

    def _fisher(self) -> CurvatureOperator:
        batch = (self._batch.x, self._batch.y)
        return fisher(self._model, self._loss_fn, batch, fisher="exact", layers=self.parts)

    def _dense(self, operator: CurvatureOperator) -> Tensor:
        unit = torch.eye(self.dimension, dtype=torch.float64)
        with operator:
            _ = operator @ unit[0]  # it keeps a graph, which vmap could not build
            # All products in one pass: several times faster than one after the other.
            matrix = torch.vmap(operator.__matmul__)(unit)
        return (matrix + matrix.T) / 2  # symmetric but for rounding

    def _second_moment(self, labels: Tensor) -> Tensor:
        rows = torch.cat([seen.rows for seen in self._passes(labels)], dim=1)
        return rows.T @ rows / len(rows)

    def _expected_second_moment(self) -> Tensor:
        """F of samples that are not coupled, by C−1 backward passes."""
        columns = output_gradients(
            self._loss_fn, self._passes(self._batch.y)[-1].outputs, self._batch.y, fisher="exact"
        )
        moment = torch.zeros(self.dimension, self.dimension, dtype=torch.float64)
        for column in columns:  # the gradient of this loss with respect to the outputs is δ / N
            passes = layer_passes(
                self._model, lambda f, d: (f * d).sum() / len(f), (self._batch.x, column)
            )
            rows = torch.cat([seen.rows for seen in passes.values()], dim=1)
            moment += rows.T @ rows / len(rows)
        return moment

    def _blocks_of(self, matrix: Tensor) -> Blocks:
        """The spectra of a matrix and its diagonal blocks."""
        n = self._settings.samples
        whole = [matrix, *(matrix[part, part] for part in self.parts.values())]
        network, *layers = moment_spectra(whole, [n] * len(whole), [CUT] * len(whole))
        return Blocks(dict(zip(self.parts, layers, strict=True)), network, {})


def _block_measurement(
    record: StepRecord,
    passed: tuple[StepRecord, ...],
    blocks: Blocks,
    spectra: Sequence[LayerSpectra],
) -> BlockMeasurement:
    return BlockMeasurement(
        record,
        passed,
        tuple(
            _block_record(position, layer, blocks.layers[layer.name])
            for position, layer in enumerate(spectra, start=1)
        ),
        lambda_max=blocks.network.lambda_max,
        kappa50=blocks.network.kappa(0.5),
        kappa50_blocks=blocks.block_diagonal.kappa(0.5),
        off_block=_off_block(blocks),
    )


def _block_record(position: int, layer: LayerSpectra, block: Spectrum) -> BlockRecord:
    return BlockRecord(
        layer=position,
        name=layer.name,
        d_in=layer.input.dimension,
        d_out=layer.grad.dimension,
        lambda_max=block.lambda_max,
        lambda_max_kronecker=layer.kronecker.lambda_max,
        kappa50=block.kappa(0.5),
        kappa50_kronecker=layer.kronecker.kappa(0.5),
        rank_g=layer.grad.rank,
        kappa_g=layer.grad.kappa(),
    )


def _off_block(blocks: Blocks) -> float:
    """‖M − blocks‖² / ‖M‖² from the spectra alone: a squared Frobenius norm is Σ λ²."""
    whole = blocks.network.eigenvalues.square().sum()
    inside = blocks.block_diagonal.eigenvalues.square().sum()
    return (1 - inside / whole).clamp(min=0).item()


def _matrix_record(matrix: Tensor) -> MatrixRecord:
    rows = matrix.tolist()
    if not matrix.isfinite().all():  # LAPACK raises on NaN
        values = torch.full((len(matrix),), math.nan)
    else:
        with one_thread():
            values = torch.linalg.eigvalsh(matrix).flip(0)
        values = values.masked_fill(values.abs() < CUT * values.abs().max(), 0)
    return MatrixRecord(tuple(map(tuple, rows)), tuple(values.tolist()))


def _relative_distance(one: Tensor, other: Tensor) -> float:
    return ((one - other).norm() / other.norm()).item()


def _fields(record: BlockMeasurement) -> dict[str, Any]:
    """As ``dataclasses.asdict``, with the records inside as they are."""
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
