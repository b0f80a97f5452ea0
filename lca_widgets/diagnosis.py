"""What is wrong with a model, and what is to be seen in a measurement, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from lca_widgets.records import LayerRecord, Measurement
from lca_widgets.rules import FLAT_FACTOR, Finding, factor_per_layer, findings

__all__ = ["Finding", "describe_magnitude", "factor_per_layer", "findings", "magnitude_factors"]


def magnitude_factors(measurement: Measurement) -> tuple[float, float]:
    """Return the factors per layer of λ_max(Σ_x) towards the output and λ_max(Σ_g) to the input.

    The first layer's input is the data and the last layer's output gradient is the loss's own, so
    Σ_x is followed over layers 2 … K and Σ_g over K-1 … 1. NaN where that leaves fewer than two.
    """
    layers = measurement.layers
    return (
        factor_per_layer([layer.lambda_max_x for layer in layers[1:]]),
        factor_per_layer([layer.lambda_max_g for layer in layers[-2::-1]]),
    )


def describe_magnitude(measurement: Measurement) -> str:
    """Say in one or two sentences how activations and gradients scale across the layers."""
    layers = measurement.layers
    if measurement.training.diverged:
        return _describe_divergence(measurement)
    if len(layers) < 3:
        return "Add layers to see how magnitudes change with depth."
    forward, backward = magnitude_factors(measurement)
    sentence = (
        f"At step {measurement.training.step}, {_change('λ_max(Σ_x)', forward)} per layer towards "
        f"the output, and {_change('λ_max(Σ_g)', backward)} per layer towards the input."
    )
    return " ".join([sentence, *_lost(layers)])


def _describe_divergence(measurement: Measurement) -> str:
    sentence = f"The run diverged: the loss is not finite at step {measurement.training.step}."
    return " ".join([sentence, *_lost(measurement.layers), "Lower the learning rate or the gain."])


def _change(quantity: str, factor: float) -> str:
    if math.isnan(factor):
        return f"{quantity} cannot be followed"
    if 1 / FLAT_FACTOR <= factor <= FLAT_FACTOR:
        return f"{quantity} is about constant (×{factor:.2g})"
    verb = "grows" if factor > 1 else "shrinks"
    fold = factor if factor > 1 else 1 / max(factor, math.ulp(0.0))
    return f"{quantity} {verb} {fold:.2g}-fold"


def _lost(layers: Sequence[LayerRecord]) -> Iterator[str]:
    """Name the layers that the factors cannot follow: vanished or not finite."""
    for quantity, field in (("Σ_x", "lambda_max_x"), ("Σ_g", "lambda_max_g")):
        values = {layer.layer: getattr(layer, field) for layer in layers}
        if zero := [k for k, value in values.items() if value == 0]:
            yield f"{quantity} is exactly 0 in {_named(zero)}."
        if bad := [k for k, value in values.items() if not math.isfinite(value)]:
            yield f"{quantity} is not finite in {_named(bad)}."


def _named(positions: Sequence[int]) -> str:
    first, last = positions[0], positions[-1]
    if len(positions) == 1:
        return f"layer {first}"
    if len(positions) > 2 and last - first == len(positions) - 1:
        return f"layers {first} to {last}"
    return f"layers {', '.join(map(str, positions))}"
