"""``python -m lca_widgets.experiments.cifar``: options, signals, several processes, exit codes.

Where no signal and no other process is needed, `main` is called in this process.
"""

import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from lca_widgets.curvature import one_thread
from lca_widgets.experiments.cifar.command import main
from lca_widgets.experiments.cifar.trainer import CifarTrainer
from tests.cifar_files import release, write_cifar

MODULE = "lca_widgets.experiments.cifar"
SMALL = ["--depth", "8", "--width-factor", "0.25", "--batch-size", "32", "--device", "cpu"]
NAME = "resnet8-none-seed0-width_factor0.25-batch_size32"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(write_cifar(tmp_path_factory.mktemp("cifar")))


@pytest.fixture
def words(data, tmp_path):
    return ["--data", data, "--out", str(tmp_path / "runs"), *SMALL]


def logs(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("*.csv"))}


def started(words):
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", MODULE, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


def wait_for_rows(process, log, count):
    for _ in range(3000):
        if log.exists() and len(log.read_text().splitlines()) > count + 4:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    raise AssertionError(f"there are no {count} rows in {log}")


def refusal(capsys, words):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_runs_of_two_seeds_and_their_report(words, tmp_path, capsys):
    process = started([*words, "--epochs", "2", "--seeds", "0", "1"])
    out, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
    runs = tmp_path / "runs"
    names = [f"resnet8-none-seed{seed}-width_factor0.25-batch_size32-epochs2" for seed in (0, 1)]
    assert sorted(path.name for path in runs.iterdir()) == names
    errors = []
    for name, line in zip(names, out.splitlines(), strict=True):
        tests = pd.read_csv(runs / name / "tests.csv", comment="#")
        errors.append(tests["test_error"].iloc[-1])
        assert line == (
            f"{name}: 14 iterations, test error {errors[-1]:.2f} %; logs in {runs / name}"
        )
    page = tmp_path / "report.html"
    assert main(["report", str(runs), "--html", str(page)]) == 0
    printed = capsys.readouterr().out
    assert f"| 2 | 0 | 14 | {np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f} |" in printed
    [row] = pd.read_csv(runs / "results.csv").to_dict("records")
    assert row["test_error_std"] == pytest.approx(np.std(errors, ddof=1))
    text = page.read_text()
    assert "<svg" in text
    assert "‖W‖ of the classifier" in text


def test_a_run_that_is_ended_twice_goes_on_as_if_it_had_not_been(words, tmp_path, capsys):
    more = [*words, "--epochs", "8", "--dropout", "0.3", "--checkpoint-every", "5"]
    name = "resnet8-none-seed0-width_factor0.25-dropout0.3-batch_size32-epochs8"
    folder = tmp_path / "runs" / name

    process = started(more)
    wait_for_rows(process, folder / "iterations.csv", 8)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    [made] = re.findall(r"stopped after (\d+) of 56 iterations; the same command goes on", out)
    assert 8 <= int(made) < 56

    process = started(more)
    wait_for_rows(process, folder / "iterations.csv", int(made) + 4)
    process.kill()
    out, _ = process.communicate(timeout=60)
    assert (process.returncode, out) == (-9, f"{name}: goes on from iteration {made} of 56\n")

    assert main(more) == 0
    assert f"{name}: goes on from iteration " in capsys.readouterr().out
    elsewhere = [str(tmp_path / "whole") if word.endswith("runs") else word for word in more]
    assert main(elsewhere) == 0
    assert logs(folder) == logs(tmp_path / "whole" / name)


def test_ctrl_c_ends_all_seeds_after_the_iteration_that_it_meets(
    words, tmp_path, capsys, monkeypatch
):
    step = CifarTrainer.step

    def interrupted(trainer):
        if trainer.iteration == 3:
            signal.raise_signal(signal.SIGINT)
        return step(trainer)

    monkeypatch.setattr(CifarTrainer, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    assert main([*words, "--seeds", "0", "1"]) == 130
    assert signal.getsignal(signal.SIGINT) == before
    out = capsys.readouterr().out
    assert out == (
        f"{NAME}: stopped after 4 of 1120 iterations; the same command goes on from there\n"
    )
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [NAME]
    rows = logs(tmp_path / "runs" / NAME)["iterations.csv"].splitlines()
    assert rows[-1].startswith("3,")


def test_a_finished_run_is_left_alone(words, tmp_path, capsys):
    assert main([*words, "--iterations", "2"]) == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs" / NAME).iterdir()}
    capsys.readouterr()
    assert main([*words, "--iterations", "2"]) == 0
    assert "has been finished before: nothing to do. 2 iterations" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "runs" / NAME).iterdir()}


def test_two_processes_train_as_one(words, tmp_path, capsys):
    # Without batch normalisation, which sees half of a batch in each of two processes.
    more = [*words, "--single-norm", "--learning-rate", "0.01", "--epochs", "1"]
    name = "resnet8-none-seed0-width_factor0.25-no_block_norm-batch_size32-epochs1"
    name += "-learning_rate0.01"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    both = subprocess.run(
        [sys.executable, *launcher, "-m", MODULE, *more],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=110,
    )
    assert both.returncode == 0, both.stderr
    assert len(both.stdout.splitlines()) == 1
    log = tmp_path / "runs" / name / "iterations.csv"
    text = log.read_text()
    assert "# 2 processes of 16 images each: batch normalisation in each has" in text
    found = pd.read_csv(log, comment="#")
    assert "processes: 2 there, 1 here" in refusal(capsys, more)
    elsewhere = [str(tmp_path / "one") if word.endswith("runs") else word for word in more]
    assert main(elsewhere) == 0
    expected = pd.read_csv(tmp_path / "one" / name / "iterations.csv", comment="#")
    assert len(found) == 7
    assert expected["loss"].nunique() == 7
    rough = ["kappa50_x", "kappa50_x_centred"]  # of single precision's small eigenvalues
    pd.testing.assert_frame_equal(
        found.drop(columns=rough), expected.drop(columns=rough), rtol=1e-4
    )
    pd.testing.assert_frame_equal(found[rough], expected[rough], rtol=1e-2)


def test_a_run_that_diverges_is_no_failure(words, capsys):
    assert main([*words, "--learning-rate", "1e30", "--weight-decay", "1"]) == 0
    assert ": diverged: the loss is no number in iteration" in capsys.readouterr().out


def test_data_are_fetched_only_if_asked_for(words, tmp_path, capsys, monkeypatch):
    empty = tmp_path / "empty"
    words[1] = str(empty)
    err = refusal(capsys, words)
    assert err.startswith(f"python -m {MODULE}: error: there is no whole CIFAR-10")
    assert "--download" in err
    assert not empty.exists()
    with release(monkeypatch, tmp_path / "server"):
        assert main([*words, "--download", "--iterations", "1"]) == 0
    [log] = (tmp_path / "runs").glob("*/iterations.csv")
    assert "# CIFAR-10, the published images: 250 to train, 50 to test" in log.read_text()


def test_cifar_100_has_folders_of_its_own(words, tmp_path, capsys):
    words[1] = str(write_cifar(tmp_path / "cifar", classes=100))
    assert main([*words, "--iterations", "1"]) == 0
    assert (tmp_path / "runs" / f"{NAME}-classes100" / "checkpoint.pt").exists()
    assert main(["report", str(tmp_path / "runs")]) == 0
    assert "-batch_size32, CIFAR-100, 250 own images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--depth", "9"], "depth must be 6n+2"),
        (["--depth", "x"], "argument --depth: invalid int value: 'x'"),
        (["--divisor", "much"], "argument --divisor: invalid"),
        (["--dropout", "1"], "dropout must be at least 0 and below 1, got 1.0"),
        (["--seeds", "-1"], "seed must be"),
        (["--batch-size", "251"], "batch_size must be at most the 250 training images, got 251"),
        (["--milestones", "0"], "milestones must be at least 1"),
        (["--no-own-final-norm"], "own_final_norm can be left out with preactivation only"),
    ],
)
def test_what_is_refused_is_said_in_one_line(words, tmp_path, capsys, wrong, message):
    err = refusal(capsys, [*words, *wrong])
    assert err.startswith(f"python -m {MODULE}: error: ")
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_to_is_refused(words, tmp_path, capsys):
    (tmp_path / "runs").write_text("a file")
    assert "runs" in refusal(capsys, words)


def test_a_report_without_runs_is_refused(tmp_path, capsys):
    assert "there is no run in" in refusal(capsys, ["report", str(tmp_path)])
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "iterations.csv").write_text("a,b\n1,2\n")
    assert "is no log of a CIFAR run" in refusal(capsys, ["report", str(tmp_path)])


def test_every_option_reaches_its_setting(words, tmp_path):
    assert (
        main(
            [
                *words,
                *("--final-norm", "scale", "--divisor", "3", "--preactivation"),
                *("--no-own-final-norm", "--shortcut", "B", "--dropout", "0.1", "--epochs", "2"),
                *("--learning-rate", "0.01", "--milestones", "1", "--momentum", "0.8"),
                *("--weight-decay", "0", "--seeds", "5", "--amp", "bf16", "--iterations", "1"),
                *("--measure-every", "2", "--checkpoint-every", "1"),
            ]
        )
        == 0
    )
    [folder] = (tmp_path / "runs").iterdir()
    assert folder.name == (
        "resnet8-scale-seed5-divisor3.0-preactivation-no_own_final_norm-shortcutB-width_factor0.25"
        "-dropout0.1-batch_size32-epochs2-learning_rate0.01-milestones1-momentum0.8"
        "-weight_decay0.0-ampbf16-measure_every2"
    )
