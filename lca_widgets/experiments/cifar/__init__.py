"""The paper's CIFAR runs: very deep residual networks, and what their last layer goes through.

``python -m lca_widgets.experiments.cifar --data DIR --depth 56 --final-norm batch`` trains as the
authors did, measures the conditioning of the classifier at every iteration in the training's own
pass, and goes on after an interruption as if there had been none; ``… report runs`` sums up. It is
not imported by `lca_widgets.experiments`: nothing else needs it.
"""

from lca_widgets.experiments.cifar.folder import RunFolder
from lca_widgets.experiments.cifar.processes import Processes, joined
from lca_widgets.experiments.cifar.results import Run, curves, read_run, read_runs, summary
from lca_widgets.experiments.cifar.run import train
from lca_widgets.experiments.cifar.settings import CifarSettings
from lca_widgets.experiments.cifar.trainer import CifarTrainer, IterationRecord

__all__ = [
    "CifarSettings",
    "CifarTrainer",
    "IterationRecord",
    "Processes",
    "Run",
    "RunFolder",
    "curves",
    "joined",
    "read_run",
    "read_runs",
    "summary",
    "train",
]
