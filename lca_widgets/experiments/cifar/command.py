"""The command line of the CIFAR runs: options, signals, what is printed, exit codes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from lca_widgets._format import number
from lca_widgets._terminal import DONE, INTERRUPTED, Parser, show_what_the_terminal_can
from lca_widgets.analysis import replaced
from lca_widgets.data import CifarData, cifar, download_cifar
from lca_widgets.experiments.cifar.folder import RunFolder
from lca_widgets.experiments.cifar.processes import Processes, joined
from lca_widgets.experiments.cifar.results import (
    as_html,
    as_markdown,
    read_run,
    read_runs,
    summary,
)
from lca_widgets.experiments.cifar.run import train
from lca_widgets.experiments.cifar.settings import AMP, MATCHED, SHORTCUTS, CifarSettings
from lca_widgets.experiments.cifar.trainer import CifarTrainer, IterationRecord
from lca_widgets.models import FINAL_NORMS
from lca_widgets.training import present_devices

__all__ = ["main"]

PROGRAM = "python -m lca_widgets.experiments.cifar"

EXAMPLES = f"""\
examples:
  {PROGRAM} --data cifar --download --depth 56
  {PROGRAM} --data cifar --depth 56 --final-norm batch --seeds 0 1 2 3 4
  torchrun --nproc-per-node 2 -m lca_widgets.experiments.cifar --data cifar --depth 110
  {PROGRAM} report runs --html report.html

Each run has a folder in --out: iterations.csv (a row an iteration: loss, accuracy and conditioning
of the last layer), tests.csv (the test error after each epoch) and checkpoint.pt. Ctrl-C or SIGTERM
ends a run after a checkpoint; the same command goes on with it, and makes the same logs as if it
had never stopped.

Of several processes each has its part of --batch-size images, and batch normalisation in each the
statistics of that part.

exit codes:
  0    done, runs that diverged included
  2    a bad argument or input
  130  stopped by Ctrl-C (143: by SIGTERM)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: Words after the program's name; ``None`` takes the process's own.

    Returns:
        0 done, 130 stopped by Ctrl-C, 143 by SIGTERM.

    Raises:
        SystemExit: argparse's way to end after ``--help`` (0) and what is refused (2).
    """
    show_what_the_terminal_can()
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if words[:1] == ["report"]:
            return _report(words[1:])
        return _train(words)
    except KeyboardInterrupt:  # before the first iteration, or for the second time
        sys.stderr.write("interrupted\n")
        return INTERRUPTED


# Options


def _parser() -> Parser:
    parser = Parser(
        prog=PROGRAM,
        description="Train a CIFAR ResNet as the paper's authors did, and measure the conditioning "
        "of its last layer at every iteration; or report on such runs. The defaults are the "
        "authors' settings.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_files(parser)
    _add_network(parser)
    _add_training(parser)
    _add_execution(parser)
    return parser


def _add_files(parser: Parser) -> None:
    group = parser.add_argument_group("what is read and written")
    group.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with CIFAR's files"
    )
    group.add_argument(
        "--classes", type=int, choices=(10, 100), help="which of the two sets, if both are there"
    )
    group.add_argument(
        "--download", action="store_true", help="fetch the set into --data if it is not there"
    )
    group.add_argument(
        "--out", type=Path, default=Path("runs"), metavar="DIR", help="for the runs (default runs)"
    )
    group.add_argument(
        "--seeds", type=int, nargs="+", default=[0], metavar="N", help="a run for each (default 0)"
    )


def _add_network(parser: Parser) -> None:
    group = parser.add_argument_group("the network")
    _add(group, "depth", "layers with weights, 6n+2")
    _add(group, "final_norm", "what stands before the classifier", choices=FINAL_NORMS)
    _add(
        group,
        "divisor",
        "of --final-norm scale: a number, or 'matched', measured on the first batch to give the "
        "classifier's input the λ_max that batch normalisation would",
        type=_divisor,
        metavar="matched|X",
    )
    group.add_argument("--preactivation", action="store_true", help="BN, ReLU, then convolution")
    group.add_argument(
        "--own-final-norm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="the BN that a pre-activation network has after its last block (default: there)",
    )
    _add(group, "shortcut", "A has no parameters, B is a 1×1 convolution", choices=SHORTCUTS)
    _add(group, "width_factor", "multiplies the 16, 32 and 64 channels")
    group.add_argument(
        "--single-norm",
        dest="block_norm",
        action="store_false",
        help="no BN in stem and blocks: with --final-norm batch it is the only one",
    )
    _add(group, "dropout", "probability, before the classifier")


def _add_training(parser: Parser) -> None:
    group = parser.add_argument_group("the training")
    _add(group, "batch_size", "images a step, over all processes")
    _add(group, "epochs", "times through the training set")
    _add(group, "learning_rate", "step size")
    group.add_argument(
        "--milestones",
        type=int,
        nargs="*",
        default=CifarSettings.milestones,
        metavar="EPOCH",
        help="from which epochs on the step size is divided by ten once more (default 80 120)",
    )
    _add(group, "momentum", "Nesterov's")
    _add(group, "weight_decay", "of every parameter")
    _add(group, "iterations", "stop after so many", type=int, metavar="N")


def _add_execution(parser: Parser) -> None:
    group = parser.add_argument_group("how it is computed")
    _add(group, "measure_every", "iterations between two measurements")
    _add(
        group,
        "checkpoint_every",
        "iterations between two checkpoints, beside those after each epoch",
        type=int,
        metavar="N",
    )
    group.add_argument(
        "--checkpointing",
        action="store_true",
        help="compute the blocks' inner values twice: less memory, more time, the same results",
    )
    _add(group, "amp", "type that the features are computed in, if not float32", choices=AMP)
    group.add_argument("--compile", action="store_true", help="use torch.compile")
    _add(group, "device", "where", choices=("auto", *present_devices()))


def _add(group: Any, name: str, meaning: str, **more: Any) -> None:
    """Add the option of a field of the settings, which checks its value."""
    default = getattr(CifarSettings, name)
    if "choices" not in more:
        more = {"type": type(default), "metavar": "N" if type(default) is int else "X"} | more
    if default is not None:
        meaning = f"{meaning} (default {default})"
    group.add_argument("--" + name.replace("_", "-"), default=default, help=meaning, **more)


def _divisor(text: str) -> float | str:
    return text if text == MATCHED else float(text)


@contextmanager
def _refused(
    parser: Parser, errors: tuple[type[Exception], ...] = (OSError, TypeError, ValueError)
) -> Iterator[None]:
    """Turn what the user can mend into words without a traceback."""
    try:
        yield
    except errors as error:
        parser.refuse(str(error))


# Results


def _report(words: Sequence[str]) -> int:
    parser = Parser(
        prog=f"{PROGRAM} report",
        description="Print a table of the runs in a folder as Markdown: a row for each settings, "
        "over its seeds. It is also written there as results.csv.",
    )
    parser.add_argument("folder", type=Path, metavar="RUNS_DIR", help="what was --out")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the table and four curves"
    )
    options = parser.parse_args(words)
    with _refused(parser):
        runs = read_runs(options.folder)
        table = summary(runs)
        with replaced(options.folder / "results.csv") as draft:
            table.to_csv(draft, index=False)
        if options.html is not None:
            with replaced(options.html) as draft:
                draft.write_text(as_html(runs), encoding="utf-8")
    sys.stdout.write(as_markdown(table) + "\n")
    return DONE


# Training


def _train(words: Sequence[str]) -> int:
    parser = _parser()
    options = parser.parse_args(words)
    with _refused(parser):
        names = {field.name for field in fields(CifarSettings)}
        chosen = {name: value for name, value in vars(options).items() if name in names}
        settings = [CifarSettings(**chosen, seed=seed) for seed in options.seeds]
        stack = ExitStack()
        processes = stack.enter_context(joined(options.device))
    with stack:
        return _train_each(settings, options, processes, parser)


def _train_each(
    settings: Sequence[CifarSettings],
    options: argparse.Namespace,
    processes: Processes,
    parser: Parser,
) -> int:
    with _refused(parser):
        data = _data(options, processes)
    for of_seed in settings:
        with _refused(parser):
            trainer = CifarTrainer(of_seed, data, processes)
            classes = "" if data.classes == 10 else f"-classes{data.classes}"
            folder = RunFolder(options.out / f"{of_seed.name}{classes}", trainer)
        # What goes wrong from here on is no matter of arguments, but perhaps of a full disk.
        with _refused(parser, (OSError,)):
            code = _run(trainer, folder)
        if code != DONE:
            return code
    return DONE


def _data(options: argparse.Namespace, processes: Processes) -> CifarData:
    if options.download and processes.first:
        download_cifar(options.data, classes=options.classes or 10)
    processes.any(False)  # the others wait until it is there
    return cifar(options.data, classes=options.classes)


def _run(trainer: CifarTrainer, folder: RunFolder) -> int:
    """Train to the end or to a signal, and say how it went."""
    first = trainer.processes.first
    if trainer.over:
        _say(first, folder, "has been finished before: nothing to do. " + _outcome(folder))
        return DONE
    if trainer.iteration:
        _say(first, folder, f"goes on from iteration {trainer.iteration} of {trainer.iterations}")
    with _signals() as received, closing(folder), _bar(trainer, folder) as bar:
        folder.open()

        def show(record: IterationRecord) -> None:
            bar.set_postfix(loss=number(record.loss), refresh=False)
            bar.update()

        stopped = train(trainer, folder, stop=lambda: bool(received), show=show)
    if not stopped:
        _say(first, folder, _outcome(folder))
        return DONE
    _say(
        first,
        folder,
        f"stopped after {trainer.iteration} of {trainer.iterations} iterations; the same command "
        "goes on from there",
    )
    # With several processes the signal may have reached another one only.
    return 128 + (received[0] if received else signal.SIGTERM)


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Note Ctrl-C and SIGTERM instead of ending at once; a second one ends it."""
    received: list[int] = []

    def note(number: int, _frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    before = {int(kind): signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number in before:
            signal.signal(number, note)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _bar(trainer: CifarTrainer, folder: RunFolder) -> tqdm[NoReturn]:
    """A line that is rewritten in place, on a terminal only."""
    return tqdm(
        desc=folder.path.name,
        total=trainer.iterations,
        initial=trainer.iteration,
        disable=None if trainer.processes.first else True,
        leave=False,
        dynamic_ncols=True,
    )


def _outcome(folder: RunFolder) -> str:
    run = read_run(folder.path)
    if run is None:
        return ""
    made, where = len(run.iterations), f"logs in {folder.path}"
    if run.diverged:
        return f"diverged: the loss is no number in iteration {made - 1}; {where}"
    return f"{made} iterations, test error {run.test_error:.2f} %; {where}"


def _say(first: bool, folder: RunFolder, words: str) -> None:
    if first:
        sys.stdout.write(f"{folder.path.name}: {words}\n")
        sys.stdout.flush()
