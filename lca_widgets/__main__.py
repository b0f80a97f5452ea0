"""``python -m lca_widgets``: see `lca_widgets.cli`."""

from __future__ import annotations

import sys

from lca_widgets.cli import main

if __name__ == "__main__":
    sys.exit(main())
