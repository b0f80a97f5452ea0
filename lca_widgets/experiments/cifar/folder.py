"""A run's folder: its two logs and its checkpoint, which always go together."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any, TextIO

import torch

from lca_widgets.analysis import replaced
from lca_widgets.experiments.cifar.trainer import CifarTrainer, IterationRecord
from lca_widgets.experiments.last_layer import LastLayer

__all__ = ["ITERATIONS", "MARK", "TESTS", "RunFolder"]

ITERATIONS, TESTS, CHECKPOINT = "iterations.csv", "tests.csv", "checkpoint.pt"
MARK = "# lca_widgets.experiments.cifar: "  # the line of a log that says what was run

MEASURES = tuple(field.name for field in fields(LastLayer))
COLUMNS = ("iteration", "epoch", "learning_rate", "loss", "accuracy", *MEASURES)
TEST_COLUMNS = ("iteration", "epoch", "test_error")


class RunFolder:
    """Writes the logs and checkpoints of a training, and goes on with those that are there.

    ``iterations.csv`` has a row for each `IterationRecord`, written at once; ``tests.csv`` the test
    error in per cent at the end of each epoch, where ``iteration`` and ``epoch`` count what has
    been made. Lines that begin with ``#`` say what was run.

    Args:
        path: The folder; it is made when the first file is written.
        trainer: The training, which is restored if there is a checkpoint.

    Raises:
        ValueError: the checkpoint is of another training, or lacks a part of its logs.
        OSError: a file cannot be read.
    """

    def __init__(self, path: Path, trainer: CifarTrainer) -> None:
        self.path, self._trainer = path, trainer
        self._logs: dict[str, TextIO] = {}
        if not (path / CHECKPOINT).exists():
            return
        try:
            trainer.restore(_loaded(path / CHECKPOINT, trainer.device))
            if trainer.processes.first:
                self._kept()  # what is wrong with the logs is found now
        except ValueError as error:
            raise ValueError(
                f"{path} cannot be gone on with: {error}; choose another --out, or remove it"
            ) from error

    def open(self) -> None:
        """Write the logs anew, with as much of them as the checkpoint has seen.

        Of several processes the first does so.
        """
        if not self._trainer.processes.first:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        for name, lines in self._kept().items():
            with replaced(self.path / name) as draft:
                draft.write_text("".join(lines), encoding="utf-8")
            self._logs[name] = (self.path / name).open("a", encoding="utf-8")

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            log.close()

    def log(self, record: IterationRecord) -> None:
        """Write the row of an iteration."""
        last = record.last_layer
        measures = ("",) * len(MEASURES) if last is None else astuple(last)
        own = (record.iteration, record.epoch, record.learning_rate, record.loss, record.accuracy)
        self._write(ITERATIONS, (*own, *measures))

    def log_test(self, error: float) -> None:
        """Write the row of a test."""
        trainer = self._trainer
        self._write(TESTS, (trainer.iteration, trainer.iteration / trainer.per_epoch, error))

    def save(self) -> None:
        """Write the checkpoint aside, and put it in its place once it is whole."""
        with replaced(self.path / CHECKPOINT) as draft:
            torch.save(self._trainer.state(), draft)

    def _write(self, name: str, values: Sequence[float | str]) -> None:
        cells = (value if isinstance(value, str) else f"{value:.9g}" for value in values)
        self._logs[name].write(",".join(cells) + "\n")
        self._logs[name].flush()

    def _kept(self) -> dict[str, list[str]]:
        """The logs' lines as an uninterrupted training would have them at this iteration."""
        trainer, made = self._trainer, self._trainer.iteration
        seen = made + trainer.diverged  # no update followed on the row of a loss that is no number
        rows = _rows(self.path / ITERATIONS, seen - 1)
        if len(rows) != seen:
            raise ValueError(f"{ITERATIONS} has {len(rows)} rows of the {seen} before it")
        head = _head(trainer)
        # A training that was stopped in an epoch was tested there; one that goes on is not.
        tests = [
            row
            for row in _rows(self.path / TESTS, made)
            if trainer.over or _number(row) % trainer.per_epoch == 0
        ]
        return {
            ITERATIONS: [*head, ",".join(COLUMNS) + "\n", *rows],
            TESTS: [*head, ",".join(TEST_COLUMNS) + "\n", *tests],
        }


def _rows(path: Path, last: int) -> list[str]:
    """The whole rows of a log up to an iteration."""
    if not path.exists():
        return []
    with path.open(encoding="utf-8") as file:
        rows = [line for line in file if line.endswith("\n") and line[0].isdigit()]
    return [row for row in rows if _number(row) <= last]


def _number(row: str) -> int:
    return int(row.split(",", 1)[0])


def _head(trainer: CifarTrainer) -> list[str]:
    data, world, size = trainer.data, trainer.processes.world, trainer.settings.batch_size
    published = "the published" if data.published else "not the published"
    who = "one process"
    if world > 1:
        who = (
            f"{world} processes of {size // world} images each: batch normalisation in each has "
            "the statistics of its own images, and the running ones are the first's; loss, "
            "accuracy and last layer are of all images"
        )
    lines = [
        MARK + json.dumps(trainer.facts),
        f"# {data.name}, {published} images: {len(data.train)} to train, {len(data.test)} to test",
        f"# {who}",
    ]
    if trainer.settings.final_norm == "scale":
        lines.append(f"# the classifier's input is divided by {trainer.divisor:.9g}")
    return [line + "\n" for line in lines]


def _loaded(path: Path, device: torch.device) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"its checkpoint cannot be read: {error}") from error
    if not isinstance(state, dict):
        raise ValueError(f"its checkpoint holds a {type(state).__name__}")
    return state
