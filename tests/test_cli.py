"""``python -m lca_widgets analyze``: what it reads, prints and writes, and its exit codes.

Most tests call `main` in this process, on modules that they write; two start the real program.
"""

import io
import json
import math
import re
import struct
import subprocess
import sys
import warnings
from dataclasses import fields
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import lca_widgets.monitor
from lca_widgets.analysis import load
from lca_widgets.charts import analysis_figure
from lca_widgets.cli import main, printout
from lca_widgets.cli.page import as_page
from lca_widgets.data import digits, mnist_format
from lca_widgets.data.mnist import MNIST_FILES
from lca_widgets.diagnosis import Finding
from lca_widgets.records import LayerReport

NETS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset, IterableDataset

print("noise of the user's own")

def mlp():
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))

def small():
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))

class Evaluated(nn.Linear):
    def __init__(self):
        super().__init__(4, 3)
        self.eval()

def image():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))

class Settings:
    model = small()

def half_squared(output, target):
    return ((output - nn.functional.one_hot(target, 3)) ** 2).sum() / 2

class Absolute(nn.Module):
    def forward(self, output, target):
        return (output - nn.functional.one_hot(target, 3)).abs().sum()

g = torch.Generator().manual_seed(0)
X, Y = torch.randn(50, 4, generator=g), torch.arange(50) % 3

def batch():
    return X, Y

def loader():
    return [(X[:20], Y[:20]), (X[20:40], Y[20:40]), (X[40:], Y[40:])]

def once():
    yield from loader()

def dataset():
    return TensorDataset(X, Y)

class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y)

def named():
    return [({"input": X}, Y)]

def uneven():
    return X, Y[:10]

not_a_model = 3
data_pairs = [(X, Y)]

def broken():
    raise ValueError("the first line\\nand the second")

def leaves():
    raise SystemExit("gone")
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder with the user's module, as the current one."""
    (tmp_path / "nets.py").write_text(NETS, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(nets, capsys):
    """Run the command on models of the module; return exit code, output and errors."""

    def run(*arguments, model="nets.py:small", data="nets.py:batch"):
        try:
            code: object = main(["analyze", model, "--data", data, *map(str, arguments)])
        except SystemExit as end:
            code = end.code
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


@pytest.fixture
def asked(monkeypatch):
    """What `analyze` is asked for; it still answers."""
    calls = []
    real = lca_widgets.monitor.analyze

    def analyze(model, loss_fn, data, **options):
        batches = list(data)
        calls.append({"model": model, "loss_fn": loss_fn, "data": batches, **options})
        options["layers"] = options["device"] = None
        return real(model, loss_fn, batches[0] if options["exact"] else batches, **options)

    monkeypatch.setattr(lca_widgets.monitor, "analyze", analyze)
    return calls


def refused(answer):
    """The one line that says what was wrong; nothing else came out."""
    code, out, err = answer
    assert code == 2
    assert out == ""
    lines = [line for line in err.splitlines() if "noise of the user" not in line]
    assert len(lines) == 1, err
    program, _, message = lines[0].partition(": error: ")
    assert program in ("python -m lca_widgets", "python -m lca_widgets analyze")
    return message


def result(answer):
    code, out, _ = answer
    assert code == 0
    return json.loads(out)


# What is printed


def test_the_numbers_are_those_of_analyze(run):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    expected = lca_widgets.monitor.analyze(
        model, nn.CrossEntropyLoss(), (x, torch.arange(50) % 3), fisher="exact"
    )
    answer = result(run("--json", "--seed", 3, "--fisher", "exact"))
    table = pd.DataFrame(answer["layers"]).astype({"kappa50_g": float})
    assert list(table["name"]) == ["0", "3"]
    for column in ("lambda_max_x", "lambda_max_g", "kappa50_x", "weight_sigma", "sensitivity"):
        assert table[column].tolist() == pytest.approx(expected.table()[column].tolist())
    assert answer["loss"] == pytest.approx(expected.loss)
    assert answer["skipped"] == expected.skipped
    assert [f["kind"] for f in answer["findings"]] == [f.kind for f in expected.findings()]


def test_the_text_has_a_row_a_layer_the_findings_and_what_was_skipped(run):
    code, out, _ = run()
    assert code == 0
    assert re.search(r"^1  0 +\S", out, re.MULTILINE)
    assert re.search(r"^2  3 +\S", out, re.MULTILINE)
    assert "\nFindings\n" in out
    assert "Not measured\n  1: BatchNorm1d" in out
    assert "seed 0" in out
    assert "loss 1." in out


def test_what_the_users_modules_print_stays_off_the_output(run):
    code, out, err = run("--json")
    assert code == 0
    assert "noise of the user" in err
    assert "noise" not in out


def test_exact_blocks_stand_beside_their_approximations(run):
    answer = result(run("--json", "--exact"))
    for layer in answer["layers"]:
        assert layer["block"]["dimension"] == layer["d_in"] * layer["d_out"]
    blocks = [layer["block"]["lambda_max"] for layer in answer["layers"]]
    assert max(blocks) <= answer["network"]["lambda_max"] * (1 + 1e-9)
    assert answer["network"]["lambda_max"] <= sum(blocks) * (1 + 1e-9)
    _, out, _ = run("--exact")
    assert re.search(r"whole network +\d", out)
    assert "exact" not in run()[1]


def report(**changes):
    ordinary = dict.fromkeys(LayerReport.__dataclass_fields__, 1234567.0) | {"dying": 1.0}
    integers = {f.name: 1000 for f in fields(LayerReport) if f.type.startswith("int")}
    return LayerReport(**ordinary | integers | {"name": "fc", "kind": "Linear"} | changes)


class Layer:
    def __init__(self, report, block=None):
        self.report, self.name, self.block = report, report.name, block


class FakeAnalysis:
    """An analysis of made-up numbers."""

    def __init__(self, *reports, findings=(), skipped=None):
        self.layers = [Layer(report) for report in reports]
        self.network, self.loss, self.skipped = None, math.nan, skipped or {}
        self._findings = list(findings)

    def findings(self):
        return self._findings

    def chart(self):
        return analysis_figure(pd.DataFrame([vars(layer.report) for layer in self.layers]))


LONG = "encoder.blocks.11.attention.output.projection.linear_layer_with_a_long_name"


def test_a_line_fits_100_columns_and_a_long_name_is_cut_in_the_middle():
    finding = Finding(LONG, "kind", "info", "evidence " * 40, "suggestion")
    shown = printout.as_text(
        FakeAnalysis(report(name=LONG), findings=[finding], skipped={LONG: "a reason " * 30}),
        {"model": "nets:mlp", "data": "digits"},
    )
    assert max(map(len, shown.splitlines())) <= 100
    [row] = [line for line in shown.splitlines() if line.startswith("1000 ")]
    name = row.split()[1]
    start, end = name.split("…")
    assert LONG.startswith(start)
    assert LONG.endswith(end)
    assert min(len(start), len(end)) >= 5


def test_infinite_and_unknown_values_are_said_in_words_that_fit():
    fake = FakeAnalysis(report(kappa50_x=math.inf, domination=math.nan, dying=0.25))
    heading, row = printout.as_text(fake, {}).split("\n\n")[1].splitlines()
    shown = dict(zip(*(re.split(r"\s\s+", line.strip()) for line in (heading, row)), strict=True))
    assert shown["κ50(Σx)"] == "∞"
    assert shown["domin."] == "–"
    assert shown["dying"] == "25 %"
    assert shown["rank Σx"] == "1000/1000"


def test_shares_of_units_have_no_column_where_nothing_is_known():
    assert "dying" not in printout.as_text(FakeAnalysis(report(dying=math.nan)), {})


def test_modules_that_were_skipped_for_one_reason_share_a_line():
    shown = printout.as_text(FakeAnalysis(report(), skipped={"a": "frozen", "b": "frozen"}), {})
    assert shown.endswith("Not measured\n  a, b: frozen")


def test_json_has_a_text_for_infinity_and_null_for_unknown():
    fake = FakeAnalysis(report(kappa50_x=math.inf, domination=math.nan))
    [layer] = json.loads(printout.as_json(fake, {}), parse_constant=pytest.fail)["layers"]
    assert float(layer["kappa50_x"]) == math.inf
    assert layer["domination"] is None


def test_every_field_of_a_report_has_a_heading():
    assert set(printout.COLUMNS) == set(LayerReport.__dataclass_fields__)


# Exit codes


@pytest.mark.parametrize(
    ("fail_on", "code"), [(None, 0), ("never", 0), ("info", 1), ("warning", 1), ("critical", 0)]
)
def test_findings_change_the_exit_code_only_where_asked(run, monkeypatch, fail_on, code):
    found = [Finding(None, "few", severity, "e", "s") for severity in ("info", "warning")]
    monkeypatch.setattr("lca_widgets.analysis.findings", lambda _: found)
    assert run(*(["--fail-on", fail_on] if fail_on else []))[0] == code


def test_files_are_written_also_where_a_finding_fails_the_run(run, nets, monkeypatch):
    found = [Finding(None, "few", "critical", "e", "s")]
    monkeypatch.setattr("lca_widgets.analysis.findings", lambda _: found)
    assert run("--fail-on", "critical", "--csv", "t.csv")[0] == 1
    assert (nets / "t.csv").is_file()


def test_an_interrupted_run_ends_with_130_and_writes_nothing(run, nets, monkeypatch):
    def analyze(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(lca_widgets.monitor, "analyze", analyze)
    code, out, err = run("--csv", "t.csv")
    assert (code, out) == (130, "")
    assert err.endswith("interrupted\n")
    assert not (nets / "t.csv").exists()


def test_the_real_program_analyses_in_silence(nets):
    command = [sys.executable, "-m", "lca_widgets", "analyze", "nets:small", "--data", "nets:batch"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True)
    assert "λmax(Σx)" in done.stdout
    assert "samples 50" in done.stdout
    assert done.stderr == "noise of the user's own\n"  # no bar where no terminal is


def test_a_reader_who_has_read_enough_causes_no_traceback(nets):
    command = [sys.executable, "-m", "lca_widgets", "analyze", "nets:small", "--data", "nets:batch"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        program.stdout.close()
        errors = program.stderr.read().decode()
    assert program.returncode == 141
    assert "Traceback" not in errors
    assert "Exception" not in errors


def test_help_shows_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as end:
        main(["analyze", "--help"])
    shown = capsys.readouterr().out
    assert end.value.code == 0
    assert "--data digits --shape 1,8,8" in shown
    assert re.search(r"^  130 +interrupted", shown, re.MULTILINE)


def test_version_is_the_installed_one(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert re.fullmatch(r"lca_widgets \d\S*\n", capsys.readouterr().out)


# The model


def test_a_module_of_the_current_folder_is_importable(run, monkeypatch, nets):
    (nets / "nets_to_import.py").write_text(NETS, encoding="utf-8")
    monkeypatch.setattr(sys, "path", [part for part in sys.path if part])
    before = list(sys.path)
    try:
        answer = run("--json", model="nets_to_import:small")
    finally:
        sys.modules.pop("nets_to_import", None)
    assert len(result(answer)["layers"]) == 2
    assert sys.path == before


def test_a_file_may_import_what_lies_beside_it(run, nets):
    folder = nets / "elsewhere"
    folder.mkdir()
    (folder / "widths_beside.py").write_text("WIDTH = 5")
    (folder / "model.py").write_text(
        "from torch import nn\nfrom widths_beside import WIDTH\n"
        "class Model(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        from needed_later import zero\n"
        "        return super().forward(x) + zero\n"
        "def make(): return nn.Sequential(nn.Linear(4, WIDTH), Model(WIDTH, 3))"
    )
    (folder / "needed_later.py").write_text("zero = 0")
    try:
        answer = run("--json", model="elsewhere/model.py:make")
    finally:
        for name in ("widths_beside", "needed_later"):
            sys.modules.pop(name, None)
    assert result(answer)["layers"][0]["d_out"] == 5


@pytest.mark.parametrize(("name", "layers"), [("Settings.model", 2), ("Evaluated", 1)])
def test_a_model_may_be_a_module_or_a_class_and_lie_deeper(run, name, layers):
    assert len(result(run("--json", model=f"nets.py:{name}"))["layers"]) == layers


def test_the_seed_fixes_the_weights_of_the_model(run):
    first, again, other = (
        result(run("--json", "--seed", seed))["layers"][0]["weight_sigma"] for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nets", "MODULE:NAME of the model must be MODULE:NAME or FILE.py:NAME, got 'nets'"),
        ("nets.py:", "MODULE:NAME of the model must be MODULE:NAME or FILE.py:NAME"),
        ("nets.py:smal", "nets.py has no 'smal'; did you mean small?"),
        ("nets.py:Settings.modle", "nets.py has no 'Settings.modle'; did you mean model?"),
        ("absent.py:mlp", "there is no file 'absent.py'"),
        ("absent_module:mlp", "there is no module 'absent_module' in the current folder"),
        ("torch.absent:mlp", "there is no module 'torch.absent'"),
        ("nets.py:not_a_model", "nets.py:not_a_model must be an nn.Module, or a function or class"),
        ("nets.py:batch", "called without arguments; got tuple"),
        ("nets.py:broken", "nets.py:broken failed: ValueError: the first line and the second"),
        ("nets.py:leaves", "nets.py:leaves failed: SystemExit: gone"),
        ("nets.py:half_squared", "nets.py:half_squared failed: TypeError"),
    ],
)
def test_a_model_that_is_not_to_be_had_is_one_line(run, model, message):
    assert message in refused(run(model=model))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import no_such_package_anywhere", "No module named 'no_such_package_anywhere'"),
        ("def f(:", "importing wrong.py failed: SyntaxError"),
    ],
)
def test_a_module_that_does_not_import_says_why(run, nets, content, message):
    (nets / "wrong.py").write_text(content)
    assert message in refused(run(model="wrong.py:f"))


def test_debug_shows_the_traceback_too(run):
    code, _, err = run("--debug", model="nets.py:broken")
    assert code == 2
    assert 'raise ValueError("the first line' in err


@pytest.mark.parametrize(
    ("options", "model", "mode"),
    [
        ([], "small", "train"),
        ([], "Evaluated", "eval"),
        (["--eval"], "small", "eval"),
        (["--train"], "Evaluated", "train"),
    ],
)
def test_the_mode_is_the_models_own_or_as_asked(run, asked, options, model, mode):
    assert result(run("--json", *options, model=f"nets.py:{model}"))["settings"]["mode"] == mode
    assert asked[0]["model"].training == (mode == "train")


def test_a_mode_is_one_of_two(run):
    assert "not allowed with argument" in refused(run("--eval", "--train"))


# Checkpoints


def state(scale=1.0):
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(6, 4) * scale)
    return model.state_dict()


@pytest.mark.parametrize(
    "content",
    [
        state(7.0),
        {"state_dict": state(7.0), "epoch": 3},
        {"model": {f"module.{name}": value for name, value in state(7.0).items()}},
    ],
    ids=["plain", "of a training", "of a parallel model"],
)
def test_a_checkpoint_is_loaded(run, nets, content):
    torch.save(content, nets / "c.pt")
    answer = result(run("--json", "--checkpoint", "c.pt"))
    assert answer["layers"][0]["weight_sigma"] == pytest.approx(7.0)


def test_a_checkpoint_runs_no_code_of_its_own(run, nets):
    torch.save(nn.Linear(4, 3), nets / "whole.pt")  # a pickled module
    assert "cannot be read as tensors alone" in refused(run("--checkpoint", "whole.pt"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file 'c.pt'"),
        (b"no zip", "'c.pt' cannot be read as tensors alone"),
        ({"0.weight": torch.ones(6, 4)}, "'c.pt' does not fit the model: RuntimeError: Error(s)"),
        (torch.ones(3), "'c.pt' must hold a state_dict, got Tensor"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_one_line(run, nets, content, message):
    if isinstance(content, bytes):
        (nets / "c.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, nets / "c.pt")
    assert message in refused(run("--checkpoint", "c.pt"))


# Data


def joined(batches):
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def test_digits_are_the_training_part(run, asked):
    run(model="nets.py:mlp", data="digits")
    x, y = joined(asked[0]["data"])
    assert torch.equal(x, digits(seed=0).train.x)
    assert torch.equal(y, digits(seed=0).train.y)


def test_batches_are_of_one_size_so_that_none_is_small(run, asked):
    run("--batch-size", 16)
    assert [len(y) for _, y in asked[0]["data"]] == [13, 13, 12, 12]


def test_exact_blocks_are_measured_on_one_batch(run, asked):
    run("--exact", model="nets.py:mlp", data="digits")
    assert [len(y) for _, y in asked[0]["data"]] == [1437]


def test_the_folder_of_an_mnist_format_set_is_data(run, nets, asked):
    generator = np.random.default_rng(0)
    (nets / "images").mkdir()
    for part, file in MNIST_FILES.items():
        shape = (30, 8, 8) if part.startswith("x") else (30,)
        values = generator.integers(0, 10, shape).astype(np.uint8)
        header = struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape)
        (nets / "images" / file).write_bytes(header + values.tobytes())
    assert run("--samples", 20, data="images", model="nets.py:mlp")[0] == 0
    [(x, _)] = asked[0]["data"]
    assert torch.equal(x, mnist_format("images", seed=0).train.x[:20])


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        ("batch", [50]),
        ("loader", [20, 20, 10]),
        ("once", [20, 20, 10]),
        ("dataset", [50]),
        ("Stream", [50]),
        ("data_pairs", [50]),
    ],
)
def test_data_may_be_a_batch_batches_or_a_data_set(run, asked, data, sizes):
    answer = result(run("--json", data=f"nets.py:{data}"))
    assert [len(y) for _, y in asked[0]["data"]] == sizes
    assert answer["layers"][0]["n"] == 50


def test_inputs_by_name_are_handed_over_as_they_are(run, asked):
    run("--samples", 30, data="nets.py:named")
    [(inputs, target)] = asked[0]["data"]
    assert list(inputs) == ["input"]
    assert inputs["input"].shape == (30, 4)
    assert len(target) == 30


@pytest.mark.parametrize(
    ("data", "sizes"),
    [("batch", [25]), ("loader", [20, 5]), ("once", [20, 5]), ("dataset", [25]), ("Stream", [25])],
)
def test_samples_are_the_first_ones(run, asked, data, sizes):
    run("--samples", 25, data=f"nets.py:{data}")
    batches = asked[0]["data"]
    assert [len(y) for _, y in batches] == sizes
    x, y = joined(batches)
    assert torch.equal(y, torch.arange(25) % 3)
    assert torch.equal(x, torch.randn(50, 4, generator=torch.Generator().manual_seed(0))[:25])


def test_shape_makes_images_of_vectors(run, asked):
    code, _, _ = run("--shape", "1,8,8", "--samples", 20, model="nets.py:image", data="digits")
    assert code == 0
    [(x, _)] = asked[0]["data"]
    assert torch.equal(x.flatten(1), digits().train.x[:20])
    assert x.shape == (20, 1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "data", "message"),
    [
        ([], "absent", "data must be 'digits' or a folder with train-images-idx3-ubyte"),
        ([], "nets.py:bacth", "--data: nets.py has no 'bacth'; did you mean batch?"),
        ([], "nets.py:not_a_model", "must be one batch (x, y), an iterable of batches or a torch"),
        ([], "nets.py:broken", "--data nets.py:broken failed: ValueError: the first line"),
        ([], "nets.py:uneven", "one entry a sample, got shapes (50, 4) and (10,)"),
        (["--samples", 51], "nets.py:batch", "--samples must be at most 50"),
        (["--samples", 51], "nets.py:dataset", "--samples must be at most 50"),
        (["--samples", 0], "nets.py:batch", "--samples: must be a whole number, at least 1: '0'"),
        (["--batch-size", "x"], "nets.py:batch", "--batch-size: must be a whole number"),
        (["--batch-size", 5], "nets.py:loader", "comes in batches of its own; leave it out"),
        (["--shape", "2,3"], "nets.py:batch", "--shape 2,3 has 6 numbers a sample, but the data"),
        (["--shape", "2,x"], "nets.py:batch", "must be sizes with commas between, as 1,8,8: '2,x'"),
        (["--shape", "4"], "nets.py:named", "--shape needs inputs that are tensors, got dict"),
        (["--seed", "-1"], "nets.py:batch", "--seed: must be a whole number, at least 0"),
    ],
)
def test_data_that_cannot_be_used_is_one_line(run, arguments, data, message):
    assert message in refused(run(*arguments, data=data))


def test_a_convolution_on_vectors_is_told_of_shape(run):
    assert "--shape 1,8,8" in refused(run(model="nets.py:image", data="digits"))
    assert "--shape" not in refused(run(model="nets.py:image"))


# Losses and options


@pytest.mark.parametrize(
    ("loss", "kind"),
    [
        ("cross_entropy", nn.CrossEntropyLoss),
        ("mse", nn.MSELoss),
        ("bce_with_logits", nn.BCEWithLogitsLoss),
    ],
)
def test_a_loss_is_known_by_name(run, asked, loss, kind):
    code, _, err = run("--loss", loss, model="nets.py:mlp", data="digits")
    assert code == 0, err
    assert type(asked[0]["loss_fn"]) is kind
    _, y = asked[0]["data"][0]
    labels = digits().train.y[: len(y)]
    one_hot = nn.functional.one_hot(labels, 10).float()
    assert torch.equal(y, labels if loss == "cross_entropy" else one_hot)


@pytest.mark.parametrize("loss", ["half_squared", "Absolute"])
def test_a_loss_may_be_the_users_own(run, asked, loss):
    code, _, err = run("--loss", f"nets.py:{loss}")
    assert code == 0, err
    assert asked[0]["loss_fn"](torch.zeros(1, 3), torch.tensor([0])).item() in (0.5, 1.0)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("huber", "--loss must be cross_entropy, mse, bce_with_logits or MODULE:NAME of a funct"),
        ("nets.py:not_a_model", "must be a function of output and target, got int"),
        ("nets.py:broken", "the analysis failed: TypeError: broken() takes 0 positional"),
    ],
)
def test_a_loss_that_cannot_be_used_is_one_line(run, loss, message):
    assert message in refused(run("--loss", loss))


def test_options_reach_the_analysis(run, asked):
    options = "--fisher sampled --conv pixel --layers 0,3 --reduction mean --seed 5 --device cpu"
    assert run(*options.split())[0] == 0
    assert {
        name: asked[0][name]
        for name in ("fisher", "conv", "layers", "reduction", "seed", "device", "exact")
    } == {
        "fisher": "sampled",
        "conv": "pixel",
        "layers": ["0", "3"],
        "reduction": "mean",
        "seed": 5,
        "device": "cpu",
        "exact": False,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layers", "nothing"], "layers must be among '0', '3'; got ['nothing']"),
        (["--layers", ","], "--layers: must be names with commas between: ','"),
        (["--device", "gpu7"], "the analysis failed: ValueError: device must be"),
        (["--fisher", "true"], "--fisher: invalid choice: 'true'"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_an_option_that_is_wrong_is_one_line(run, arguments, message):
    assert message in refused(run(*arguments))


@pytest.mark.filterwarnings("always")
def test_warnings_are_one_line_on_the_error_stream(run, monkeypatch):
    def analyze(*_, **__):
        warnings.warn("few samples\nfor that", stacklevel=1)
        raise ValueError("enough")

    monkeypatch.setattr(lca_widgets.monitor, "analyze", analyze)
    _, _, err = run()
    assert "\nwarning: few samples for that\n" in err


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("options", "shown"), [([], True), (["--quiet"], False)])
def test_a_terminal_is_shown_how_far_it_is(run, monkeypatch, options, shown):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert run(*options, data="nets.py:loader")[0] == 0
    assert ("/3 [" in screen.getvalue()) == shown


# Files


def test_the_files_hold_the_analysis(run, nets):
    torch.manual_seed(0)
    code, _, _ = run("--html", "p.html", "--csv", "t.csv", "--save", "a.npz")
    assert code == 0
    table = pd.read_csv(nets / "t.csv")
    assert list(table.columns) == list(LayerReport.__dataclass_fields__)
    stored = load(nets / "a.npz")
    assert stored.table()["lambda_max_x"].tolist() == pytest.approx(table["lambda_max_x"].tolist())
    assert sorted(path.name for path in nets.iterdir() if path.is_file()) == [
        "a.npz",
        "nets.py",
        "p.html",
        "t.csv",
    ]


def test_a_table_is_compressed_as_its_name_ends(run, nets):
    assert run("--csv", "t.csv.gz")[0] == 0
    assert (nets / "t.csv.gz").read_bytes().startswith(b"\x1f\x8b")
    assert pd.read_csv(nets / "t.csv.gz")["name"].tolist() == [0, 3]


@pytest.mark.parametrize("option", ["--html", "--csv", "--save"])
def test_a_file_that_cannot_be_written_is_refused_before_the_analysis(run, nets, asked, option):
    assert "there is no folder 'absent'; make it first" in refused(run(option, "absent/f"))
    (nets / "folder").mkdir()
    assert "'folder' is no file that could be replaced" in refused(run(option, "folder"))
    assert "'nets.py' is named twice" in refused(run("--html", "nets.py", "--csv", "./nets.py"))
    assert not asked


def test_a_failure_while_writing_leaves_every_file_as_it_was(run, nets, monkeypatch):
    for name in ("p.html", "a.npz"):
        (nets / name).write_text("before")

    def save(self, path):
        path.write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr("lca_widgets.analysis.Analysis.save", save)
    message = refused(run("--html", "p.html", "--save", "a.npz"))
    assert message == "the files cannot be written: OSError: disk full"
    assert {path.name: path.read_text() for path in nets.iterdir() if path.is_file()} == {
        "nets.py": NETS,
        "p.html": "before",
        "a.npz": "before",
    }


# The page


class Page(HTMLParser):
    """A strict reader: every element that needs an end has it, in order."""

    VOID = ("meta", "br", "img", "link", "input", "hr")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else "", data))

    def texts(self, tag):
        return [text for where, text in self.text if where == tag]


HOSTILE = '<script>alert("λ & co")</script>'


@pytest.fixture(scope="module")
def page():
    found = [Finding(HOSTILE, "kind", "critical", HOSTILE, "suggestion")]
    fake = FakeAnalysis(
        report(name=HOSTILE, layer=1, kappa50_x=math.inf), findings=found, skipped={HOSTILE: "why"}
    )
    return as_page(fake, {"model": HOSTILE, "checkpoint": None}, title=f"Conditioning of {HOSTILE}")


def test_a_page_is_well_formed_and_names_are_escaped(page):
    read = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert not [tag for tag, _ in read.elements if tag == "script"]
    assert f"Conditioning of {HOSTILE}" in "".join(read.texts("h1"))
    assert HOSTILE in "".join(read.texts("th"))
    assert "checkpoint" not in read.texts("dt")


def test_a_page_asks_the_network_for_nothing(page):
    attributes = [attrs for _, attrs in Page(page).elements]
    assert not [a for a in attributes if {"src", "href", "xlink:href"} & set(a)]
    assert "url(" not in page
    assert "@import" not in page
    assert set(re.findall(r"https?://[^\"' <)]*", page)) == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }


def test_a_page_has_all_columns_the_findings_and_the_charts(page):
    read = Page(page)
    headings = read.texts("th")
    assert [heading for heading, _ in printout.COLUMNS.values()] == headings[
        : len(printout.COLUMNS)
    ]
    assert "∞" in read.texts("td")
    assert any("suggestion" in text for text in read.texts("span"))
    assert [tag for tag, _ in read.elements].count("svg") == 1
    assert any("λ_max(Σ_x) by layer" in text for text in read.texts("text"))
    assert any(text.startswith("λ_max(Σ_x) by layer: uncentred") for text in read.texts("pre"))
    assert any("name: " in text for text in read.texts("title")[1:])  # where the mouse rests


def test_a_page_follows_the_readers_theme(page):
    assert "prefers-color-scheme: dark" in page
    assert "color-scheme: light dark" in page
