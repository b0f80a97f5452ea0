"""The command line: options, the analysis, what is printed and written, exit codes."""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from lca_widgets._terminal import (
    DONE,
    INTERRUPTED,
    REFUSED,
    Parser,
    show_what_the_terminal_can,
)
from lca_widgets.analysis import Analysis, replaced
from lca_widgets.cli import inputs, printout
from lca_widgets.cli.inputs import BATCH_SIZE, LOSSES, CommandError, refused
from lca_widgets.cli.page import as_page
from lca_widgets.curvature.layers import Conv
from lca_widgets.curvature.losses import Fisher, Reduction
from lca_widgets.rules import SEVERITIES

__all__ = ["main"]

PROGRAM = "python -m lca_widgets"
FOUND, CLOSED_PIPE = 1, 141
LONGEST_MESSAGE = 600  # characters: one line, and not a state_dict's list of every key

EXAMPLES = """\
examples:
  python -m lca_widgets analyze mynets:resnet20 --data mynets:batches --html report.html
  python -m lca_widgets analyze nets.py:small_cnn --data digits --shape 1,8,8
  python -m lca_widgets analyze nets.py:mlp --data ~/fashion-mnist --checkpoint mlp.pt --eval
  python -m lca_widgets analyze nets:mlp --data digits --json | jq '.layers[].lambda_max_x'
  python -m lca_widgets analyze nets:mlp --data digits --fail-on critical   # for scripts and CI

exit codes:
  0    analysed
  1    analysed, and there is a finding at or above --fail-on
  2    a bad argument or input; nothing was written
  130  interrupted

A finding is a reading of a network in training, not a fault of the program: it changes the exit
code only where --fail-on asks for it.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Words after the program's name; ``None`` takes the process's own.

    Returns:
        0 analysed, 1 analysed with a finding at or above ``--fail-on``, 2 refused, 130 interrupted.

    Raises:
        SystemExit: argparse's way to end after ``--help``, ``--version`` (0) and bad options (2).
    """
    show_what_the_terminal_can()
    options = _parser().parse_args(arguments)
    try:
        code = _analyze(options)
        sys.stdout.flush()  # a pipe that was closed shows here, not when Python ends
        return code
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:  # `… | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE
    except CommandError as error:
        if options.debug:
            traceback.print_exc()
        sys.stderr.write(f"{PROGRAM} analyze: error: {_one_line(error)}\n")
        return REFUSED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog=PROGRAM, description="Layer-wise conditioning analysis of a network.")
    parser.add_argument("--version", action="version", version=f"lca_widgets {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="analyze")
    analyze = commands.add_parser(
        "analyze",
        help="measure every layer of a model once",
        description="Measure the conditioning of every layer of a model, once, and say what is to "
        "be seen.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_input(analyze)
    _add_measurement(analyze)
    _add_output(analyze)
    return parser


def _add_input(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what to analyse")
    group.add_argument(
        "model",
        metavar="MODULE:NAME",
        help="an importable module (the current folder counts) or a .py file, and in it a function "
        "or class that is called without arguments and returns an nn.Module, or an nn.Module; "
        "NAME may have dots",
    )
    group.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="'digits'; a folder with the four files of an MNIST-format set; or MODULE:NAME of, or "
        "of a function that returns, one batch (x, y), an iterable of batches or a torch Dataset. "
        "Of 'digits' and a folder, the training part is used",
    )
    group.add_argument(
        "--shape",
        type=_shape,
        metavar="C,H,W",
        help="reshape each sample, as 1,8,8 for a convolution on the digits, which come as vectors",
    )
    group.add_argument("--samples", type=_positive, metavar="N", help="the first N samples only")
    group.add_argument(
        "--batch-size",
        type=_positive,
        metavar="N",
        help="samples in a pass at most; the last batch is no smaller than the others, which batch "
        f"normalisation in train mode would see (default {BATCH_SIZE}; data that comes in batches "
        "keeps its own)",
    )
    group.add_argument(
        "--loss",
        default="cross_entropy",
        metavar="LOSS",
        help=f"{', '.join(LOSSES)}, or MODULE:NAME of a function (output, target) or of a class "
        "of such (default cross_entropy). With mse and bce_with_logits, the class labels of "
        "'digits' and of a folder become one-hot targets",
    )
    group.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="a state_dict to load into the model"
    )
    mode = group.add_mutually_exclusive_group()
    mode.add_argument("--train", action="store_true", help="put the model into train mode")
    mode.add_argument(
        "--eval",
        action="store_true",
        help="put the model into eval mode. Without either it stays as it was made, in general in "
        "train mode: batch normalisation then uses each batch's own statistics, as in training, "
        "and dropout is active",
    )


def _add_measurement(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how to measure")
    group.add_argument(
        "--fisher",
        choices=get_args(Fisher),
        default="empirical",
        help="labels behind Σ_g: the data's (default), all classes, or drawn from the model",
    )
    group.add_argument(
        "--conv",
        choices=get_args(Conv),
        default="patch",
        help="Σ_x of a convolution: of patches, (C·k·k)² (default), or of pixels, C²",
    )
    group.add_argument(
        "--exact",
        action="store_true",
        help="also the exact layer blocks and the whole network's matrix, which compare every pair "
        "of samples: they pass as one batch, and --samples keeps the memory, N² numbers, small",
    )
    group.add_argument(
        "--layers", type=_names, metavar="A,B", help="names of the layers to measure (default all)"
    )
    group.add_argument(
        "--reduction",
        choices=get_args(Reduction),
        help="how a loss of your own combines the samples (default: found out)",
    )
    group.add_argument("--device", metavar="DEVICE", help="cpu, cuda, cuda:1, … (default: as made)")
    group.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="seeds torch before the model is made, the split of 'digits' and drawn labels "
        "(default 0)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what comes out (files are replaced)")
    group.add_argument(
        "--json",
        action="store_true",
        help='print JSON instead of text; ∞ becomes the string "Infinity", NaN becomes null',
    )
    group.add_argument("--html", type=Path, metavar="FILE", help="write a page with the charts")
    group.add_argument("--csv", type=Path, metavar="FILE", help="write the whole table")
    group.add_argument("--save", type=Path, metavar="FILE", help="write it all, for lca.load")
    group.add_argument(
        "--fail-on",
        choices=(*SEVERITIES, "never"),
        default="never",
        help="exit with 1 if there is a finding of this severity or above (default never)",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")


def _analyze(options: argparse.Namespace) -> int:
    files = _output_files(options)
    # What the user's modules print must not mix with the result, which a program may read.
    with redirect_stdout(sys.stderr), _short_warnings(), inputs.import_path():
        analysis, settings = _measured(options)
    _write(analysis, settings, files)
    show = printout.as_json if options.json else printout.as_text
    sys.stdout.write(show(analysis, settings) + "\n")
    return FOUND if _fails(analysis, options.fail_on) else DONE


def _measured(options: argparse.Namespace) -> tuple[Analysis, dict[str, Any]]:
    from lca_widgets.monitor import analyze

    torch.manual_seed(options.seed)  # a model may be made while its module is imported
    model = inputs.model(options)
    loss_fn = inputs.loss(options.loss)
    data = inputs.data(options)
    with refused(f"the analysis failed{inputs.hint(options, model)}"):
        analysis = analyze(
            model,
            loss_fn,
            data,
            fisher=options.fisher,
            conv=options.conv,
            exact=options.exact,
            layers=options.layers,
            device=options.device,
            reduction=options.reduction,
            seed=options.seed,
        )
    return analysis, _settings(options, model, analysis)


def _settings(options: argparse.Namespace, model: nn.Module, analysis: Analysis) -> dict[str, Any]:
    training = {module.training for module in model.modules()}
    return {
        "model": options.model,
        "mode": "mixed" if len(training) > 1 else "train" if model.training else "eval",
        "checkpoint": None if options.checkpoint is None else str(options.checkpoint),
        "data": options.data,
        "samples": analysis.report.layers[0].n if analysis.report.layers else None,
        "loss function": options.loss,
        "Fisher": options.fisher,
        "convolutions": options.conv,
        "seed": options.seed,
        "date": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
        "lca_widgets": _version(),
        "torch": torch.__version__,
    }


def _fails(analysis: Analysis, fail_on: str) -> bool:
    if fail_on == "never":
        return False
    lowest = SEVERITIES.index(fail_on)
    return any(SEVERITIES.index(f.severity) >= lowest for f in analysis.findings())


# Files


def _output_files(options: argparse.Namespace) -> dict[str, Path]:
    """Refuse files that could not be written, before minutes of measuring."""
    files: dict[str, Path] = {}
    for name in ("html", "csv", "save"):
        path = getattr(options, name)
        if path is None:
            continue
        target = path.resolve()
        if not target.parent.is_dir():
            raise CommandError(f"--{name}: there is no folder {str(path.parent)!r}; make it first")
        if target.exists() and not target.is_file():
            raise CommandError(f"--{name}: {str(path)!r} is no file that could be replaced")
        if not os.access(target.parent, os.W_OK):
            raise CommandError(f"--{name}: the folder {str(path.parent)!r} cannot be written to")
        if target in files.values():
            raise CommandError(f"--{name}: {str(path)!r} is named twice")
        files[name] = target
    return files


def _write(analysis: Analysis, settings: Mapping[str, Any], files: Mapping[str, Path]) -> None:
    """Write all files beside their places first, so that a failure replaces none."""
    with refused("the files cannot be written"), ExitStack() as stack:
        drafts = {name: stack.enter_context(replaced(path)) for name, path in files.items()}
        if "html" in drafts:
            page = as_page(analysis, settings, title=f"Conditioning of {settings['model']}")
            drafts["html"].write_text(page, encoding="utf-8")
        if "csv" in drafts:
            analysis.to_csv(drafts["csv"])
        if "save" in drafts:
            analysis.save(drafts["save"])


# Words of options, and errors


def _positive(text: str) -> int:
    return _whole_number(text, low=1)


def _seed(text: str) -> int:
    return _whole_number(text, low=0, high=2**32 - 1)


def _whole_number(text: str, low: int, high: int | None = None) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise argparse.ArgumentTypeError(f"must be a whole number, at least {low}{upper}: {text!r}")
    return value


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(_positive(part) for part in text.split(","))
    except argparse.ArgumentTypeError:
        message = f"must be sizes with commas between, as 1,8,8: {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError(f"must be names with commas between: {text!r}")
    return names


@contextmanager
def _short_warnings() -> Iterator[None]:
    """Show a warning as one line, without the place in the code that it came from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        sys.stderr.write(f"warning: {_one_line(message)}\n")

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _one_line(message: object) -> str:
    return textwrap.shorten(str(message), LONGEST_MESSAGE, placeholder=" …")


def _version() -> str:
    try:
        return version("lca_widgets")
    except PackageNotFoundError:  # run from a folder, without an installation
        return "unknown"
