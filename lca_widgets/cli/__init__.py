"""``python -m lca_widgets analyze model:factory --data …``: an analysis from a terminal.

Standard output carries the result alone; the progress bar, warnings and errors go to standard
error.
"""

from __future__ import annotations

from lca_widgets.cli.command import main

__all__ = ["main"]
