"""A run: a training with its logs and checkpoints, to its end or until it is asked to stop."""

from __future__ import annotations

from collections.abc import Callable

from lca_widgets.experiments.cifar.folder import RunFolder
from lca_widgets.experiments.cifar.trainer import CifarTrainer, IterationRecord

__all__ = ["train"]


def train(
    trainer: CifarTrainer,
    folder: RunFolder,
    *,
    stop: Callable[[], bool] = lambda: False,
    show: Callable[[IterationRecord], None] = lambda record: None,
) -> bool:
    """Train to the last iteration, to a loss that is no number, or until ``stop`` says so.

    The first process writes a row for each iteration and tests the network at the end of each
    epoch, and of the run. Checkpoints are written then, when the run stops, and as often as the
    settings say; each after its rows.

    Args:
        trainer: The training, from where it is.
        folder: Of the same training, opened.
        stop: Asked after each iteration; of several processes, one that says yes stops all.
        show: Called with the record of each iteration.

    Returns:
        Whether it was stopped with something left to do.
    """
    every, first = trainer.settings.checkpoint_every, trainer.processes.first
    stopped = False
    while not (trainer.over or stopped):
        record = trainer.step()
        stopped = trainer.processes.any(stop())
        due = trainer.epoch_over or trainer.over
        if first:
            folder.log(record)
            if due and not trainer.diverged:
                folder.log_test(trainer.test_error())
            if due or stopped or (every and trainer.iteration % every == 0):
                folder.save()
        show(record)
    return not trainer.over
