"""``python -m lca_widgets.experiments.cifar``: see `lca_widgets.experiments.cifar.command`."""

from __future__ import annotations

import sys

from lca_widgets.experiments.cifar.command import main

if __name__ == "__main__":
    sys.exit(main())
