"""Frozen layers: they stay, the others train, and the loss ends higher the more there are."""

import dataclasses
import statistics

import pytest

from lca_widgets.experiments.freezing import FreezingSettings, freezing, frozen_training, patterns

SMALL = FreezingSettings(trained="1111", width=16, samples=128, steps=20)


def run(**changes):
    return list(freezing(dataclasses.replace(SMALL, **changes)))


@pytest.mark.parametrize("pattern", ["0111", "1010", "0001"])
def test_the_digits_say_which_layers_move(pattern):
    end = run(trained=pattern)[-1]
    assert [moved > 0 for moved in end.moved] == [digit == "1" for digit in pattern]
    assert [layer.grad_norm > 0 for layer in end.layers] == [digit == "1" for digit in pattern]


def test_beside_it_runs_the_network_that_trains_all_its_layers():
    frozen, full = run(trained="0001"), run()
    assert [m.full for m in frozen] == [m.training for m in full]
    assert frozen[0].training == full[0].training
    assert frozen[-1].training.loss > full[-1].training.loss


def test_the_loss_falls_and_ends_higher_the_more_layers_are_frozen():
    ends = [
        frozen_training(dataclasses.replace(SMALL, trained=pattern, steps=40, seed=seed))
        for pattern in patterns(4)
        for seed in range(3)
    ]
    assert all(end.loss < end.start for end in ends)
    medians = [statistics.median(e.loss for e in ends if e.frozen == k) for k in range(4)]
    assert medians == sorted(medians)
    assert medians[3] > 2 * medians[0]


def test_the_end_is_that_of_the_measured_run():
    settings = dataclasses.replace(SMALL, trained="0110")
    end, measured = frozen_training(settings), run(trained="0110")
    assert (end.start, end.loss) == (measured[0].training.loss, measured[-1].training.loss)
    assert (end.trained, end.frozen) == ("0110", 2)


def test_every_pattern_but_that_of_nothing_is_there_once():
    found = patterns(5)
    assert len(found) == len(set(found)) == 31
    assert "00000" not in found
    counts = [pattern.count("0") for pattern in found]
    assert counts == sorted(counts)


def test_a_twin_that_diverges_does_not_end_the_run():
    measured = run(trained="00000001", norm="none", learning_rate=100.0)
    assert measured[-1].full.diverged
    assert len(measured) > 1 + measured[-1].full.step


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"trained": 11111}, TypeError, "trained must be a text of digits, got 11111"),
        ({"trained": "1"}, ValueError, "trained must have 2 to 20 digits, one a layer, got '1'"),
        ({"trained": "12"}, ValueError, "trained must be made of 0 .* and 1 .*, got '12'"),
        ({"trained": "000"}, ValueError, "with at least one layer trained, got '000'"),
        ({"steps": -1}, ValueError, "steps must be between 0 and 10000, got -1"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes, error, words):
    with pytest.raises(error, match=words):
        FreezingSettings(**changes)
