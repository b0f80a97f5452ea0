"""A run is determined by its settings, describes the state it says, and resumes exactly."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from lca_widgets.curvature import FactorCapture
from lca_widgets.data import Split
from lca_widgets.models import mlp
from lca_widgets.training import Checkpoint, TrainingRun, TrainingSettings, accuracy

DATA = Split(
    torch.randn(40, 6, generator=torch.Generator().manual_seed(5)), torch.arange(40) % 3
)  # fmt: skip
SETTINGS = TrainingSettings(steps=9, learning_rate=0.2, momentum=0.9, batch_size=8, seed=4)


def network(norm="batch"):
    return mlp(6, 3, depth=3, width=5, norm=norm)


def start(settings=SETTINGS, norm="batch", **kwargs):
    return TrainingRun(network(norm), DATA, settings, **kwargs)


def advance(run, records):
    """Take so many records and abandon the iterator."""
    return list(itertools.islice(run, records))


def state(run):
    """Model with its buffers, and momentum, as comparable bytes."""
    parts = run.model.state_dict() | {
        f"momentum{k}": values["momentum_buffer"]
        for k, values in run._optimizer.state_dict()["state"].items()
    }
    return {name: tensor.numpy().tobytes() for name, tensor in parts.items()}


class Recorder(nn.Module):
    """A linear classifier that keeps the batches it was given."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3, bias=False)
        nn.init.constant_(self.linear.weight, 0.1)
        self.batches = []

    def forward(self, x):
        self.batches.append(x.clone())
        return self.linear(x)


# What a run is


def test_the_same_settings_give_the_same_records_and_weights_bit_for_bit():
    first, second = start(), start()
    assert list(first) == list(second)
    assert state(first) == state(second)


def test_a_run_yields_one_record_more_than_it_makes_updates():
    run = start()
    assert [record.step for record in run] == list(range(10))
    assert run.step == 9
    assert not any(record.diverged for record in run)


def test_no_steps_leave_the_weights_as_they_were():
    run = start(dataclasses.replace(SETTINGS, steps=0))
    assert [record.step for record in run] == [0]
    for trained, fresh in zip(run.model.parameters(), network().parameters(), strict=True):
        assert torch.equal(trained, fresh)


def test_the_seed_decides_the_batches():
    batches = []
    for seed in (0, 0, 1):
        model = Recorder()
        list(TrainingRun(model, DATA, dataclasses.replace(SETTINGS, seed=seed)))
        batches.append(torch.stack(model.batches))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_an_epoch_uses_every_sample_once_and_the_next_one_another_order():
    model = Recorder()
    list(TrainingRun(model, DATA, SETTINGS))  # 10 batches of 8, two epochs of 40
    epochs = torch.cat(model.batches).reshape(2, 40, 6)
    for epoch in epochs:
        assert sorted(epoch[:, 0].tolist()) == sorted(DATA.x[:, 0].tolist())
    assert not torch.equal(epochs[0], epochs[1])


def test_labels_stay_with_their_samples():
    pairs = {tuple(x.tolist()): int(y) for x, y in zip(DATA.x, DATA.y, strict=True)}
    model, labels = Recorder(), []

    def loss(outputs, y):
        labels.append(y.clone())
        return nn.functional.cross_entropy(outputs, y)

    list(TrainingRun(model, DATA, SETTINGS, loss_fn=loss))
    for x, y in zip(torch.cat(model.batches), torch.cat(labels), strict=True):
        assert pairs[tuple(x.tolist())] == int(y)


def test_without_a_batch_size_every_step_takes_every_sample():
    model = Recorder()
    list(TrainingRun(model, DATA, TrainingSettings(steps=1)))
    assert all(torch.equal(batch, DATA.x) for batch in model.batches)


def test_record_t_describes_the_weights_and_gradient_at_t():
    run = start(TrainingSettings(steps=4, learning_rate=0.3), norm="none")
    for record in run:
        parameters = list(run.model.parameters())
        outputs = run.model(DATA.x)
        loss = nn.functional.cross_entropy(outputs, DATA.y)
        assert record.loss == loss.item()
        assert record.accuracy == (outputs.argmax(1) == DATA.y).double().mean().item()
        gradients = torch.autograd.grad(loss, parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, gradient)


def test_updates_are_heavy_ball_steps():
    settings = TrainingSettings(steps=3, learning_rate=0.3, momentum=0.5)
    run = start(settings, norm="none")
    theta, velocity = network("none").linear1.weight.detach().clone(), 0.0
    for _ in run:
        weight = run.model.linear1.weight
        torch.testing.assert_close(weight.detach(), theta)
        velocity = 0.5 * velocity + weight.grad
        theta = theta - 0.3 * velocity


def test_weight_decay_adds_its_part_of_the_weight_to_the_gradient():
    run = start(dataclasses.replace(SETTINGS, momentum=0.0, weight_decay=0.1))
    weight = run.model.linear2.weight
    records = iter(run)
    next(records)
    expected = weight.detach() - 0.2 * (weight.grad + 0.1 * weight.detach())
    next(records)
    torch.testing.assert_close(weight.detach(), expected)


def test_weight_decay_does_not_move_a_frozen_weight():
    run = start(dataclasses.replace(SETTINGS, weight_decay=0.1))
    run.model.linear2.weight.requires_grad_(False)
    before = run.model.linear2.weight.clone()
    list(run)
    assert torch.equal(run.model.linear2.weight, before)


def test_a_fork_has_the_weight_decay_it_was_given():
    run = start()
    advance(run, 3)
    with_decay, without = run.fork(weight_decay=0.5), run.fork()
    ends = [
        (list(branch), branch.model.linear2.weight.norm().item())[1]
        for branch in (with_decay, without)
    ]
    assert ends[0] < 0.8 * ends[1]


def test_hooks_see_one_forward_and_one_backward_pass_a_record():
    run = start()
    with FactorCapture(run.model) as capture:
        for _ in run:
            assert [layer.n for layer in capture.take()] == [8, 8, 8]


def test_an_evaluation_between_two_records_does_not_change_the_run():
    records = []
    run = start()
    for record in run:
        run.model.eval()
        with torch.no_grad():
            run.model(DATA.x)
        records.append(record)
    assert records == list(start())


def test_the_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    records = list(start())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert list(start()) == records


def test_accuracy_counts_the_largest_outputs():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert accuracy(outputs, torch.tensor([1, 1, 1, 0])) == 0.5


# Divergence


@pytest.mark.parametrize("norm", ["none", "batch"])
def test_a_loss_that_is_not_finite_ends_the_run_with_a_flagged_record_and_no_update(norm):
    run = start(TrainingSettings(steps=50, learning_rate=1e30), norm=norm)
    seen = []
    for record in run:
        weights = {k: v.clone() for k, v in run.model.state_dict().items()}
        seen.append(record)
    assert len(seen) < 51
    assert [record.diverged for record in seen] == [False] * (len(seen) - 1) + [True]
    assert not math.isfinite(seen[-1].loss)
    assert run.step == seen[-1].step == len(seen) - 1
    for name, value in run.model.state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=0, equal_nan=True)


# Resuming


@pytest.fixture(scope="module")
def uninterrupted():
    """Records and final state of a run that nothing interrupts."""
    run = start()
    return list(run), state(run)


CUTS = [0, 1, 4, 5, 6, 10]  # the batches of an epoch are 5; 10 is the end


@pytest.mark.parametrize("cut", CUTS)
def test_a_saved_and_loaded_checkpoint_resumes_the_uninterrupted_run(tmp_path, uninterrupted, cut):
    run = start()
    before = advance(run, cut)
    run.checkpoint().save(tmp_path / "checkpoint.pt")
    loaded = Checkpoint.load(tmp_path / "checkpoint.pt")
    assert loaded.settings == SETTINGS
    assert loaded.step == max(0, cut - 1)
    resumed = TrainingRun(network(), DATA, loaded.settings, checkpoint=loaded)
    after = list(resumed)
    # A checkpoint between two records stands before the update: its record comes again.
    assert (before[:-1] + after, state(resumed)) == uninterrupted


@pytest.mark.parametrize("cut", CUTS)
def test_a_fork_goes_on_like_the_uninterrupted_run(uninterrupted, cut):
    run = start()
    before = advance(run, cut)
    fork = run.fork()
    assert (before[:-1] + list(fork), state(fork)) == uninterrupted
    assert (before[:-1] + list(run), state(run)) == uninterrupted


@pytest.mark.parametrize("cut", CUTS)
def test_an_abandoned_run_goes_on_with_the_same_record_first(uninterrupted, cut):
    run = start()
    before = advance(run, cut)
    assert (before[:-1] + list(run), state(run)) == uninterrupted


def test_abandoning_again_and_again_counts_no_batch_twice(uninterrupted):
    run = start()
    records = [advance(run, 2)[-1] for _ in range(9) for _ in [advance(run, 1)]]
    assert (records, state(run)) == (uninterrupted[0][1:], uninterrupted[1])


def test_a_checkpoint_is_a_copy_that_later_steps_do_not_change(uninterrupted):
    run = start()
    advance(run, 4)
    checkpoint = run.checkpoint()
    list(run)
    resumed = TrainingRun(network(), DATA, SETTINGS, checkpoint=checkpoint)
    assert list(resumed) == uninterrupted[0][3:]
    # ... and resuming does not use it up.
    again = TrainingRun(network(), DATA, SETTINGS, checkpoint=checkpoint)
    assert list(again) == uninterrupted[0][3:]


def test_a_norm_that_is_used_twice_counts_its_batches_as_often_after_a_fork():
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(norm, nn.ReLU(), norm, nn.Linear(6, 3))
    run = TrainingRun(model, DATA, SETTINGS)
    advance(run, 4)
    fork = run.fork()
    assert (list(fork), state(fork)) == (list(run), state(run))


def test_taking_a_checkpoint_does_not_change_the_run(uninterrupted):
    run = start()
    records = [(record, run.checkpoint())[0] for record in run]
    assert (records, state(run)) == uninterrupted


def test_a_fork_with_another_rate_parts_after_its_first_update(uninterrupted):
    run = start()
    advance(run, 4)
    fork = run.fork(learning_rate=0.01, steps=6)
    records = list(fork)
    assert records[0] == uninterrupted[0][3]
    assert records[1].loss != uninterrupted[0][4].loss
    assert records[-1].step == 6
    assert (fork.settings.learning_rate, run.settings.learning_rate) == (0.01, 0.2)
    assert list(run) == uninterrupted[0][3:]


def test_settings_with_numpy_numbers_survive_a_checkpoint(tmp_path):
    run = start(TrainingSettings(learning_rate=np.float64(0.5), momentum=np.float64(0.1)))
    run.checkpoint().save(tmp_path / "checkpoint.pt")
    assert Checkpoint.load(tmp_path / "checkpoint.pt").settings == run.settings


def test_a_checkpoint_of_another_architecture_is_refused():
    other = TrainingRun(mlp(6, 3, depth=2, width=5), DATA, SETTINGS).checkpoint()
    with pytest.raises(ValueError, match=r"(?s)checkpoint does not fit this model: .*linear3"):
        start(checkpoint=other)


def test_a_file_that_holds_something_else_is_refused_by_name(tmp_path):
    for content in ({"weight": torch.ones(2)}, [1, 2], {"settings": {"epochs": 3}}):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(ValueError, match=r"other\.pt holds no checkpoint of a training run"):
            Checkpoint.load(tmp_path / "other.pt")


# Refusals


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("steps", -1, "at least 0, got -1"),
        ("learning_rate", 0.0, r"above 0, got 0\.0"),
        ("learning_rate", -0.1, r"above 0, got -0\.1"),
        ("learning_rate", math.inf, "finite and above 0, got inf"),
        ("momentum", 1.0, r"at least 0 and below 1, got 1\.0"),
        ("momentum", -0.1, r"at least 0 and below 1, got -0\.1"),
        ("batch_size", 0, "at least 1, got 0"),
        ("seed", 2**31, "between 0 and 2147483647, got 2147483648"),
    ],
)
def test_settings_outside_their_range_are_refused_by_name(field, value, words):
    with pytest.raises(ValueError, match=f"^{field} must be {words}$"):
        TrainingSettings(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("steps", 1.0), ("learning_rate", "0.1")])
def test_settings_of_a_wrong_type_are_refused_by_name(field, value):
    with pytest.raises(TypeError, match=f"^{field} must be a .*, got {value!r}"):
        TrainingSettings(**{field: value})


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must be at most .* samples, 40, got 41"):
        start(dataclasses.replace(SETTINGS, batch_size=41))
    assert len(list(start(TrainingSettings(steps=2, batch_size=40)))) == 3
