"""What the commands of this package do alike on a terminal."""

from __future__ import annotations

import argparse
import io
import sys
from typing import NoReturn

__all__ = ["DONE", "INTERRUPTED", "REFUSED", "Parser", "show_what_the_terminal_can"]

# Exit codes.
DONE, REFUSED, INTERRUPTED = 0, 2, 130


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Refuse the options."""
        self.refuse(f"{message} (--help lists the options)")

    def refuse(self, message: str) -> NoReturn:
        """Say why, and end with the exit code 2."""
        self.exit(REFUSED, f"{self.prog}: error: {message}\n")


def show_what_the_terminal_can() -> None:
    """Let a terminal that has no λ show "?" in its place, instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
