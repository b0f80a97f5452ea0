"""The CIFAR runs: settings, images, training, measurements, logs, checkpoints and results.

What the command does with signals and several processes is in `test_cifar_command`.
"""

import copy
import functools
import math
import shutil
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot, pad

from lca_widgets.curvature import one_thread
from lca_widgets.data import cifar
from lca_widgets.experiments.cifar import (
    CifarSettings,
    CifarTrainer,
    Processes,
    RunFolder,
    curves,
    read_run,
    read_runs,
    summary,
    train,
)
from lca_widgets.experiments.cifar.augmentation import crops_of, normalised, sample_indices
from lca_widgets.experiments.cifar.results import as_html, as_markdown
from tests.cifar_files import write_cifar

ALONE = Processes(0, 1, torch.device("cpu"))
# Seven iterations an epoch.
SMALL = CifarSettings(depth=8, width_factor=0.25, batch_size=32, epochs=2, device="cpu")


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return cifar(write_cifar(tmp_path_factory.mktemp("cifar")))


@pytest.fixture
def run(tmp_path, data):
    """Run, or go on with, a training in the folder of its name; return its two logs' text."""

    def run(settings=SMALL, stop_after=None, name=None):
        trainer = CifarTrainer(settings, data, ALONE)
        folder = RunFolder(tmp_path / (name or settings.name), trainer)
        with closing(folder):
            folder.open()
            train(trainer, folder, stop=lambda: trainer.iteration == stop_after)
        return [(folder.path / log).read_text() for log in ("iterations.csv", "tests.csv")]

    return run


def losses(log):
    return [line.split(",")[3] for line in log.splitlines() if line[0].isdigit()]


def rows(log):
    return [line for line in log.splitlines() if line[0].isdigit()]


# Settings


def test_the_defaults_are_the_authors_settings():
    ours = CifarSettings()
    assert (ours.learning_rate, ours.momentum, ours.weight_decay) == (0.1, 0.9, 1e-4)
    assert (ours.batch_size, ours.epochs, ours.milestones) == (128, 160, (80, 120))
    assert (ours.shortcut, ours.width_factor, ours.dropout) == ("A", 1.0, 0.0)
    assert (ours.final_norm, ours.preactivation, ours.block_norm) == ("none", False, True)
    assert (ours.amp, ours.measure_every, ours.iterations) == ("none", 1, None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"depth": 21},
        {"depth": 2},
        {"final_norm": "layer"},
        {"divisor": 2.0},
        {"final_norm": "scale", "divisor": 0.0},
        {"final_norm": "scale", "divisor": "measured"},
        {"preactivation": 1},
        {"own_final_norm": False},
        {"shortcut": "C"},
        {"width_factor": 0.0},
        {"block_norm": None},
        {"dropout": 1.0},
        {"batch_size": 1},
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"milestones": (0,)},
        {"momentum": 1.0},
        {"weight_decay": -1e-4},
        {"seed": -1},
        {"checkpointing": "yes"},
        {"amp": "fp8"},
        {"compile": 1},
        {"device": "tpu"},
        {"iterations": 0},
        {"measure_every": 0},
        {"checkpoint_every": 0},
    ],
)
def test_a_refused_field_is_named(wrong):
    with pytest.raises((TypeError, ValueError), match=list(wrong)[-1]):
        CifarSettings(**wrong)


def test_a_name_tells_what_is_not_the_default_but_where_and_how_far():
    assert CifarSettings().name == "resnet56-none-seed0"
    free = CifarSettings(depth=20, seed=3, device="cpu", iterations=9, checkpoint_every=2)
    assert free.name == "resnet20-none-seed3"
    other = CifarSettings(
        preactivation=True, own_final_norm=False, learning_rate=0.05, milestones=(40, 60)
    )
    assert other.name == (
        "resnet56-none-seed0-preactivation-no_own_final_norm-learning_rate0.05-milestones40+60"
    )


def test_the_learning_rate_falls_by_ten_from_each_milestone_on(run):
    log, _ = run(replace(SMALL, epochs=3, milestones=(1, 2), learning_rate=0.05))
    rates = [float(row.split(",")[2]) for row in rows(log)]
    assert rates == pytest.approx([0.05] * 7 + [0.005] * 7 + [0.0005] * 7)


# Images


def test_a_crop_is_a_part_of_the_reflected_image_flipped_or_not():
    images = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = images.byte()
    crops = crops_of(64, seed=1, iteration=5)
    found = crops.of(images)
    assert found.dtype == torch.uint8
    padded = pad(images.double(), (4, 4, 4, 4), mode="reflect")
    for k in range(64):
        top, left = int(crops.top[k]), int(crops.left[k])
        expected = padded[k, :, top : top + 32, left : left + 32]
        if crops.flipped[k]:
            expected = expected.flip(2)
        assert torch.equal(found[k].double(), expected)


def test_crops_and_flips_are_uniform():
    crops = crops_of(20_000, seed=0, iteration=0)
    for offsets in (crops.top, crops.left):
        share = torch.bincount(offsets, minlength=9) / 20_000
        assert len(share) == 9
        assert (share - 1 / 9).abs().max() < 0.01
    assert abs(float(crops.flipped.double().mean()) - 0.5) < 0.015
    correlation = np.corrcoef([crops.top, crops.left, crops.flipped])
    assert np.abs(correlation - np.eye(3)).max() < 0.03


def test_images_are_normalised_by_the_authors_numbers():
    bytes_of = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    found = normalised(bytes_of.byte())
    for channel, (mean, std) in enumerate(((125.3, 63.0), (123.0, 62.1), (113.9, 66.7))):
        expected = (bytes_of[:, channel].double() - mean) / std
        torch.testing.assert_close(found[:, channel].double(), expected, rtol=1e-6, atol=1e-6)


def test_an_epoch_takes_each_image_once_in_another_order_than_the_one_before():
    epochs = [[sample_indices(250, 32, 0, 7 * epoch + k) for k in range(7)] for epoch in (0, 1)]
    for epoch in epochs:
        assert len(set(torch.cat(epoch).tolist())) == 7 * 32
    assert not torch.equal(epochs[0][0], epochs[1][0])
    assert not torch.equal(epochs[0][0], sample_indices(250, 32, 1, 0))


def test_a_batch_depends_on_seed_and_iteration_alone(data):
    whole = slice(None)
    used = CifarTrainer(SMALL, data, ALONE)
    for _ in range(3):
        used.step()
    fresh = CifarTrainer(SMALL, data, ALONE)
    torch.manual_seed(7)  # nothing is drawn from the global state
    for a, b in zip(used.batch(9, whole), fresh.batch(9, whole), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(fresh.batch(9, whole)[0], fresh.batch(2, whole)[0])
    other = CifarTrainer(replace(SMALL, seed=1), data, ALONE)
    assert not torch.equal(fresh.batch(9, whole)[0], other.batch(9, whole)[0])


def test_parts_of_a_batch_are_the_batch(data):
    trainer = CifarTrainer(SMALL, data, ALONE)
    x, y = trainer.batch(4, slice(None))
    halves = [trainer.batch(4, Processes(rank, 2, ALONE.device).part(32)) for rank in (0, 1)]
    assert torch.equal(torch.cat([half[0] for half in halves]), x)
    assert torch.equal(torch.cat([half[1] for half in halves]), y)


# Training and measurement


def test_a_step_is_nesterovs_with_weight_decay_on_everything(data):
    trainer = CifarTrainer(replace(SMALL, weight_decay=0.01), data, ALONE)
    twin = copy.deepcopy(trainer.network).train()
    velocity = [torch.zeros_like(parameter) for parameter in twin.parameters()]
    for _ in range(3):
        x, y = trainer.batch(trainer.iteration, slice(None))
        gradients = torch.autograd.grad(cross_entropy(twin(x), y), list(twin.parameters()))
        with torch.no_grad():
            for parameter, v, gradient in zip(twin.parameters(), velocity, gradients, strict=True):
                g = gradient + 0.01 * parameter
                v.mul_(0.9).add_(g)
                parameter.sub_(0.1 * (g + 0.9 * v))
        trainer.step()
    for found, expected in zip(trainer.network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("final_norm", ["none", "batch"])
def test_measurements_agree_with_matrices_built_sample_by_sample(data, final_norm):
    trainer = CifarTrainer(replace(SMALL, final_norm=final_norm), data, ALONE)
    for _ in range(2):
        trainer.step()
    twin = copy.deepcopy(trainer.network).double().train()
    x, y = trainer.batch(2, slice(None))
    record = trainer.step()
    with torch.no_grad():
        features = twin.features(x.double())
        logits = twin.classifier(features)
    size = len(y)
    moment_x, moment_g, moment_w = (torch.zeros(n, n).double() for n in (16, 10, 160))
    for feature, logit, label in zip(features, logits, y, strict=True):
        g = logit.softmax(0) - one_hot(label, 10)
        w = torch.outer(g, feature).flatten()
        moment_x += torch.outer(feature, feature) / size
        moment_g += torch.outer(g, g) / size
        moment_w += torch.outer(w, w) / size
    mean = features.mean(0)
    spectrum, centred = (
        torch.linalg.eigvalsh(m).flip(0) for m in (moment_x, moment_x - torch.outer(mean, mean))
    )
    last = record.last_layer
    near = functools.partial(pytest.approx, rel=1e-4)
    assert record.loss == near(cross_entropy(logits, y).item())
    assert record.accuracy == near((logits.argmax(1) == y).double().mean().item())
    assert last.lambda_max_x == near(float(spectrum[0]))
    assert last.lambda_max_x_centred == near(float(centred[0]))
    half = len(spectrum) // 2 - 1
    assert last.kappa50_x == pytest.approx(float(spectrum[0] / spectrum[half]), rel=1e-2)
    assert last.kappa50_x_centred == pytest.approx(float(centred[0] / centred[half]), rel=1e-2)
    assert last.lambda_max_g == near(float(torch.linalg.eigvalsh(moment_g)[-1]))
    assert last.lambda_max_weight_grad == near(float(torch.linalg.eigvalsh(moment_w)[-1]))
    assert last.weight_norm == near(float(twin.classifier.weight.detach().norm()))


def test_measuring_changes_nothing(run):
    always, tests = run()
    seldom, same_tests = run(replace(SMALL, measure_every=1000))
    assert losses(always) == losses(seldom)
    assert rows(tests) == rows(same_tests)
    assert rows(seldom)[0] == rows(always)[0]
    assert rows(seldom)[1].endswith("," * 7)


def test_the_test_error_is_that_of_the_test_set_in_eval_mode(run, data, tmp_path):
    _, tests = run()
    trainer = CifarTrainer(SMALL, data, ALONE)
    RunFolder(tmp_path / SMALL.name, trainer)
    network = trainer.network.eval()
    with torch.no_grad():
        found = network(normalised(data.test.x)).argmax(1)
    error = 100 * (found != data.test.y).double().mean().item()
    assert [row.split(",")[:2] for row in rows(tests)] == [["7", "1"], ["14", "2"]]
    assert float(rows(tests)[-1].split(",")[2]) == pytest.approx(error)


def test_a_network_learns(run):
    log, tests = run(replace(SMALL, epochs=8, learning_rate=0.05, final_norm="batch"))
    assert float(losses(log)[-1]) < 1.5 < float(losses(log)[0])
    assert float(rows(tests)[-1].split(",")[2]) < 60


def test_checkpointing_gives_the_same_log(run):
    logs = [rows(run(replace(SMALL, dropout=0.3, checkpointing=on))[0]) for on in (False, True)]
    assert logs[0] == logs[1]


def test_bf16_is_near_float32_and_leaves_the_classifier_in_float32(run, data):
    half = replace(SMALL, amp="bf16", iterations=3)
    found, exact = (
        np.array(losses(run(s)[0]), float) for s in (half, replace(SMALL, iterations=3))
    )
    assert np.abs(found - exact).max() < 0.1
    assert (found != exact).all()
    trainer = CifarTrainer(half, data, ALONE)
    seen = []
    trainer.network.classifier.register_forward_hook(
        lambda _, args, output: seen.extend([args[0].dtype, output.dtype])
    )
    trainer.step()
    assert seen == [torch.float32, torch.float32]


def test_fp16_takes_the_scale_of_the_loss_out_of_the_measurements(data):
    exact, half = (
        CifarTrainer(replace(SMALL, amp=amp), data, ALONE).step().last_layer
        for amp in ("none", "fp16")
    )
    assert half.lambda_max_g == pytest.approx(exact.lambda_max_g, rel=0.02)
    assert half.lambda_max_weight_grad == pytest.approx(exact.lambda_max_weight_grad, rel=0.02)


def test_a_compiled_network_is_measured_as_well(run, monkeypatch):
    # Everything of torch.compile but its code generator, which takes a minute.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain = pd.DataFrame([row.split(",") for row in rows(run(replace(SMALL, iterations=3))[0])])
    log, _ = run(replace(SMALL, iterations=3, compile=True))
    compiled = pd.DataFrame([row.split(",") for row in rows(log)])
    np.testing.assert_allclose(compiled.astype(float), plain.astype(float), rtol=1e-3)


def test_a_matched_divisor_gives_the_first_batch_the_input_of_batch_normalisation(run, data):
    scaled = CifarTrainer(replace(SMALL, final_norm="scale", dropout=0.5), data, ALONE)
    normed = CifarTrainer(replace(SMALL, final_norm="batch"), data, ALONE)
    plain = CifarTrainer(SMALL, data, ALONE).step().last_layer.lambda_max_x
    expected = normed.step().last_layer.lambda_max_x
    assert scaled.divisor == pytest.approx(math.sqrt(plain / expected), rel=1e-4)
    given = replace(SMALL, final_norm="scale", divisor=4.0, iterations=1)
    assert CifarTrainer(given, data, ALONE).step().last_layer.lambda_max_x == pytest.approx(
        plain / 16, rel=1e-5
    )
    log, _ = run(given)
    assert "# the classifier's input is divided by 4\n" in log


def test_a_batch_that_does_not_fit_is_refused(data):
    with pytest.raises(ValueError, match="batch_size must be at most the 250"):
        CifarTrainer(replace(SMALL, batch_size=251), data, ALONE)
    with pytest.raises(ValueError, match="batch_size must be a multiple of the 3 processes"):
        CifarTrainer(SMALL, data, Processes(0, 3, ALONE.device))


# Logs and checkpoints


def test_the_head_of_a_log_says_what_was_run(run):
    for log in run(replace(SMALL, iterations=1)):
        head = [line for line in log.splitlines() if line.startswith("#")]
        assert '"depth": 8' in head[0]
        assert head[1:] == [
            "# CIFAR-10, not the published images: 250 to train, 50 to test",
            "# one process",
        ]


@pytest.mark.parametrize(
    "settings",
    [SMALL, replace(SMALL, final_norm="batch", dropout=0.3, milestones=(1,), amp="bf16")],
    ids=["plain", "dropout"],
)
def test_a_run_that_was_stopped_and_gone_on_with_is_the_uninterrupted_one(run, settings):
    whole = run(settings, name="whole")
    for stop in (3, 7, 11):
        run(settings, stop_after=stop, name="parts")
    assert run(settings, name="parts") == whole


def test_rows_after_the_checkpoint_are_cut_off(run, tmp_path):
    whole = run(name="whole")
    run(name="killed", stop_after=5)
    for log in ("iterations.csv", "tests.csv"):  # as a process leaves them that is killed later
        text = (tmp_path / "whole" / log).read_text()
        (tmp_path / "killed" / log).write_text(text[:-20] + "\n1")
    assert run(name="killed") == whole


def test_a_run_without_a_checkpoint_begins_anew(run, tmp_path):
    whole = run(name="whole")
    run(name="killed", stop_after=5)
    (tmp_path / "killed" / "checkpoint.pt").unlink()
    assert run(name="killed") == whole


def test_checkpoints_are_written_as_often_as_asked_for(run, tmp_path, monkeypatch):
    saved = []
    state = CifarTrainer.state

    def noted(trainer):
        saved.append(trainer.iteration)
        return state(trainer)

    monkeypatch.setattr(CifarTrainer, "state", noted)
    run(replace(SMALL, checkpoint_every=3))
    assert saved == [3, 6, 7, 9, 12, 14]
    assert sorted(path.name for path in (tmp_path / SMALL.name).iterdir()) == [
        "checkpoint.pt",
        "iterations.csv",
        "tests.csv",
    ]


def test_a_run_may_be_made_longer(run):
    short = run(replace(SMALL, iterations=3), name="long")
    assert [row.split(",")[0] for row in rows(short[1])] == ["3"]
    assert run(name="long") == run(name="whole")


def test_a_checkpoint_of_other_settings_is_refused_by_what_differs(run, tmp_path):
    run(stop_after=2)
    with pytest.raises(ValueError, match=r"momentum: 0\.9 there, 0\.8 here") as refusal:
        run(replace(SMALL, momentum=0.8, width_factor=0.5), name=SMALL.name)
    assert "width_factor: 0.25 there, 0.5 here" in str(refusal.value)
    assert "depth" not in str(refusal.value)


def test_a_checkpoint_of_other_data_is_refused(run, data, tmp_path):
    run(stop_after=2)
    fewer = cifar(write_cifar(tmp_path / "fewer", train=200))
    with pytest.raises(ValueError, match=r"images: \[250, 50\] there, \[200, 50\] here"):
        RunFolder(tmp_path / SMALL.name, CifarTrainer(SMALL, fewer, ALONE))


def test_what_is_no_checkpoint_or_lacks_its_log_is_refused(run, tmp_path):
    run(stop_after=4)
    log = tmp_path / SMALL.name / "iterations.csv"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(ValueError, match="2 rows of the 4"):
        run()
    checkpoint = tmp_path / SMALL.name / "checkpoint.pt"
    for content in (["a list"], {"facts": CifarTrainer}):
        if isinstance(content, list):
            torch.save(content, checkpoint)
        else:
            checkpoint.write_bytes(b"no zip")
        with pytest.raises(ValueError, match="its checkpoint"):
            run()


def test_a_loss_that_is_no_number_is_logged_and_ends_the_run(run, tmp_path, data):
    wild = replace(SMALL, learning_rate=1e30, weight_decay=1.0)
    log, tests = run(wild)
    assert 1 < len(rows(log)) < 14
    assert not math.isfinite(float(losses(log)[-1]))
    assert not rows(tests)
    assert read_run(tmp_path / wild.name).diverged
    trainer = CifarTrainer(wild, data, ALONE)
    RunFolder(tmp_path / wild.name, trainer)
    assert trainer.over
    assert run(wild)[0] == log


# Results


@pytest.fixture
def results(run, tmp_path):
    """Three seeds of one settings, of which one diverged, and one of another."""
    for seed in range(3):
        run(replace(SMALL, seed=seed))
    run(replace(SMALL, final_norm="batch"))
    errors = {0: 10.0, 1: 13.0, 2: 20.0}
    for seed, error in errors.items():
        log = tmp_path / replace(SMALL, seed=seed).name / "tests.csv"
        kept = log.read_text().splitlines()[:-1]
        log.write_text("\n".join([*kept, f"14,2,{error}"]) + "\n")
    return tmp_path


def test_the_results_are_means_over_the_seeds(results):
    runs = read_runs(results)
    table = summary(runs).set_index("settings")
    both = table.loc["resnet8-none-width_factor0.25-batch_size32-epochs2, 250 own images"]
    assert (both["runs"], both["diverged"], both["tested"]) == (3, 0, 3)
    assert both["test_error"] == pytest.approx(43 / 3)
    mean = 43 / 3
    by_hand = math.sqrt(((10 - mean) ** 2 + (13 - mean) ** 2 + (20 - mean) ** 2) / 2)
    assert both["test_error_std"] == pytest.approx(by_hand)
    logs = [run.iterations for run in runs if run.facts["final_norm"] == "none"]
    assert both["final_loss"] == pytest.approx(np.mean([log["loss"][7:].mean() for log in logs]))
    largest = max(log["lambda_max_x"].max() for log in logs)
    assert both["lambda_max_x_early"] == largest
    text = as_markdown(summary(runs))
    assert "| 14.33 ± 5.13 |" in text
    assert " ± – |" in text
    assert "not the published ones in any of these runs" in text


def test_a_diverged_run_counts_as_such_and_in_no_mean(results):
    log = results / replace(SMALL, seed=2).name / "iterations.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([*lines[:-1], "13,1,0.1,nan,0.1,,,,,,,"]) + "\n")
    row = summary(read_runs(results)).iloc[-1]
    assert (row["runs"], row["diverged"], row["test_error"]) == (3, 1, 11.5)
    assert row["test_error_std"] == pytest.approx(3 / math.sqrt(2))
    assert math.isfinite(row["final_loss"])


def test_only_the_first_500_iterations_count_as_early(results):
    path = results / replace(SMALL, final_norm="batch").name / "iterations.csv"
    late = "600,85,0.1,2,0.1,1e9,1,1,1,1,1,1\n"
    path.write_text(path.read_text() + late)
    row = summary(read_runs(results)).iloc[0]
    assert 0 < row["lambda_max_x_early"] < 1e6


def test_the_curves_are_thinned_medians_with_a_band(results):
    path = results / replace(SMALL, final_norm="batch").name / "iterations.csv"
    more = (f"{k},9,0.1,{2 + k},0.1,1,1,1,1,1,1,1\n" for k in range(14, 5000))
    path.write_text(path.read_text() + "".join(more))
    figure = curves(read_runs(results))
    assert len(figure.concat) == 4
    tables = [pd.DataFrame(rows) for rows in figure.to_dict()["datasets"].values()]
    line = max((t for t in tables if "loss" in t), key=len)
    assert 200 < len(line) < 400
    assert line["iteration"].max() == 5000
    assert any("loss_low" in t for t in tables)
    assert "<svg" in as_html(read_runs(results))


def test_runs_of_which_none_got_anywhere_are_reported_too(run, tmp_path):
    wild = replace(SMALL, learning_rate=1e30, iterations=5)
    run(wild)
    path = tmp_path / wild.name / "iterations.csv"
    head = [line for line in path.read_text().splitlines() if not line[0].isdigit()]
    path.write_text("\n".join([*head, "0,0,0.1,nan,0.1,,,,,,,"]) + "\n")
    runs = read_runs(tmp_path)
    assert "| 1 | 1 | 1 | – |" in as_markdown(summary(runs))
    assert "<svg" in as_html(runs)


def test_published_images_are_told_from_others(results):
    for path in results.glob("*/iterations.csv"):
        path.write_text(path.read_text().replace('"published": false', '"published": true'))
    assert "The images were the published ones." in as_markdown(summary(read_runs(results)))
    shutil.rmtree(results)
    results.mkdir()
    with pytest.raises(ValueError, match="there is no run in"):
        read_runs(results)
