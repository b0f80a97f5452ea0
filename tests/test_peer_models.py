"""`analyze` and `watch` on models that no one here wrote."""

import functools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import lca_widgets as lca
from lca_widgets.analysis import Analysis
from lca_widgets.curvature.passes import run
from tests.curvature.test_capture import hooks_on, state_of
from tests.peer_models import PEER_MODELS

# One MobileNet is enough here: 50 layers take seconds.
MEASURED = [peer for peer in PEER_MODELS if peer.name != "timm mobilenetv3"]

# Those that PyTorch computes by a function with the layer's weight, never by calling the layer.
UNCALLED = {"torchvision VisionTransformer": ["out_proj"] * 2}


class Analysed(NamedTuple):
    """An analysis, with everything that it may not change before and after it."""

    analysis: Analysis
    layers: list[str]  # names of the model's own
    before: tuple
    after: tuple


def analysed(built, **options):
    model, inputs, target, loss_fn = built
    torch.manual_seed(0)  # of dropout
    before = state_of(model), hooks_on(model)
    analysis = lca.analyze(model, loss_fn, (inputs, target), **options)
    kinds = nn.Linear | nn.Conv2d
    layers = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    return Analysed(analysis, layers, before, (state_of(model), hooks_on(model)))


@functools.cache
def analysed_once(peer):
    return analysed(peer.build())


@pytest.mark.parametrize("peer", MEASURED, ids=str)
def test_every_layer_is_measured_and_nothing_changed(peer):
    analysis, layers, before, after = analysed_once(peer)
    assert after == before
    table = analysis.table()
    left_out = [name.rpartition(".")[2] for name in layers if name not in set(table["name"])]
    assert left_out == UNCALLED.get(peer.name, [])
    assert table["name"].iloc[-1] == peer.classifier
    assert not table["diverged"].any()
    positive = table[["lambda_max_x", "lambda_max_g", "weight_sigma", "grad_sigma"]]
    assert (positive.to_numpy() > 0).all()
    assert analysis.chart().to_dict()
    assert {f.severity for f in analysis.findings()} <= {"info", "warning"}


@pytest.mark.parametrize("peer", MEASURED, ids=str)
def test_a_watched_step_says_what_an_analysis_says(peer):
    table = analysed_once(peer).analysis.table()
    built = peer.build()
    hooks_before = hooks_on(built.model)
    torch.manual_seed(0)
    with lca.watch(built.model, every=1, conv="patch") as monitor:
        built.loss_fn(run(built.model, built.inputs), built.target).backward()
    watched = monitor.table()
    assert watched["name"].tolist() == table["name"].tolist()
    columns = ["lambda_max_x", "lambda_max_g", "lambda_max_x_centred", "lambda_max_g_centred"]
    columns += ["weight_sigma", "grad_sigma", "dying", "full", "n", "rows", "grad_rows"]
    np.testing.assert_allclose(
        watched[columns].astype(float), table[columns].astype(float), rtol=2e-3
    )
    assert hooks_on(built.model) == hooks_before


def test_the_layers_of_gpt2_are_linear_layers_stored_transposed():
    """Factors, weights and blocks are those of the same model with nn.Linear in their place."""
    [peer] = [peer for peer in PEER_MODELS if peer.name == "transformers GPT2"]
    stored, linear = peer.build(), peer.build()
    for name, module in list(linear.model.named_modules()):
        if type(module).__name__ == "Conv1D":
            layer = nn.Linear(module.nx, module.nf)
            layer.load_state_dict({"weight": module.weight.T.clone(), "bias": module.bias})
            linear.model.set_submodule(name, layer)
    one, other = (analysed(built, exact=True).analysis for built in (stored, linear))
    kinds = [layer.kind for layer in one.layers]
    assert kinds == ["Conv1D"] * 8 + ["Linear"]
    for a, b in zip(one.layers, other.layers, strict=True):
        assert a.name == b.name
        for value in ("weight_sigma", "grad_sigma"):
            assert getattr(a, value) == pytest.approx(getattr(b, value), rel=1e-4)
        for spectrum in ("input", "grad", "block"):
            x, y = getattr(a, spectrum), getattr(b, spectrum)
            assert x.lambda_max == pytest.approx(y.lambda_max, rel=1e-3)
