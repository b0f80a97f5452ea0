"""What the factors of all layers cost, with their eigenvalues and without, beside the peers."""

import pytest
from torch import nn

from lca_widgets.curvature import FactorCapture, kronecker_factors, layer_spectra
from tests.benchmarks.passes import in_passes, problem

LOSS = nn.CrossEntropyLoss()
OURS = {
    "patch": {"conv": "patch"},
    "pixel": {"conv": "pixel"},
    "patch, exact Fisher": {"conv": "patch", "fisher": "exact"},
}
RESNETS = ["ResNet-20", "ResNet-56"]
MLPS = ["MLP 784–10×256–10", "MLP 64–9×64–10"]
CASES = [(name, how) for name in RESNETS for how in OURS] + [(name, "patch") for name in MLPS]


def rounds_of(name):
    return 3 if name in RESNETS else 20


@pytest.mark.parametrize("eigenvalues", [False, True], ids=["factors", "factors and eigenvalues"])
@pytest.mark.parametrize(("name", "how"), CASES)
def test_own_passes(benchmark, name, how, eigenvalues):
    case = problem(name, benchmark)

    def measure():
        factors = kronecker_factors(case.model, LOSS, (case.x, case.y), **OURS[how])
        return layer_spectra(factors.layers) if eigenvalues else factors.layers

    layers = in_passes(benchmark, case, measure, rounds_of(name))
    assert len(layers) == sum(isinstance(m, nn.Conv2d | nn.Linear) for m in case.model.modules())


@pytest.mark.parametrize("eigenvalues", [False, True], ids=["factors", "factors and eigenvalues"])
@pytest.mark.parametrize("name", MLPS)
def test_the_trainings_own_passes(benchmark, name, eigenvalues):
    """The time of a training step's passes that are watched, the passes included."""
    case = problem(name, benchmark)

    def measure():
        with FactorCapture(case.model) as capture:
            case.forward_backward()
        factors = capture.take()
        return layer_spectra(factors) if eigenvalues else factors

    assert in_passes(benchmark, case, measure, rounds_of(name))


@pytest.mark.parametrize("name", RESNETS)
def test_curvlinops(benchmark, name):
    """Its K-FAC factors of the empirical Fisher, without eigenvalues."""
    curvlinops = pytest.importorskip("curvlinops")
    case = problem(name, benchmark)
    convolutions = [m for m in case.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    operator = curvlinops.KFACLinearOperator(
        case.model,
        LOSS,
        [layer.weight for layer in convolutions],
        [(case.x, case.y)],
        fisher_type=curvlinops.FisherType.EMPIRICAL,
        check_deterministic=False,
        num_data=len(case.x),
        num_per_example_loss_terms=1,
    )
    in_passes(benchmark, case, operator.compute_kronecker_factors, rounds_of(name))
    assert len(operator._input_covariances) == len(convolutions)


@pytest.mark.parametrize("name", RESNETS)
def test_nngeometry(benchmark, name):
    """Its K-FAC factors of the empirical Fisher, without eigenvalues."""
    backend = pytest.importorskip("nngeometry.backend")
    from nngeometry.layercollection import LayerCollection
    from nngeometry.object.pspace import PMatKFAC
    from torch.utils.data import DataLoader, TensorDataset

    case = problem(name, benchmark)
    layers = LayerCollection()
    for module in case.model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            layers.add_layer_from_model(case.model, module)
    generator = backend.TorchHooksJacobianBackend(
        model=case.model,
        function=lambda x, y: nn.functional.cross_entropy(case.model(x), y, reduction="none"),
        layer_collection=layers,
    )
    loader = DataLoader(TensorDataset(case.x, case.y), batch_size=len(case.x))
    result = in_passes(
        benchmark, case, lambda: PMatKFAC(generator, examples=loader), rounds_of(name)
    )
    assert len(result.data) == len(layers.layers)


@pytest.mark.filterwarnings("ignore:Using a non-full backward hook:FutureWarning")  # its hooks
@pytest.mark.parametrize("name", RESNETS)
def test_asdl(benchmark, name):
    """Its K-FAC factors of the empirical Fisher, without eigenvalues."""
    asdl = pytest.importorskip("asdl")
    case = problem(name, benchmark)
    maker = asdl.get_fisher_maker(
        case.model,
        asdl.FisherConfig(
            fisher_type=asdl.FISHER_EMP,
            fisher_shapes=[asdl.SHAPE_KRON],
            data_size=len(case.x),
            ignore_modules=[nn.BatchNorm2d],
        ),
    )
    output = maker.setup_model_call(case.model, case.x)
    maker.setup_loss_call(nn.functional.cross_entropy, output, case.y)
    in_passes(benchmark, case, maker.forward_and_backward, rounds_of(name))
    assert case.model[-1].fisher.kron.B.shape == (10, 10)
