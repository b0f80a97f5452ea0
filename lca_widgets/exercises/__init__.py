"""Questions with answers that can be checked: a question, its hints and its solution in one place.

In a notebook:

>>> import lca_widgets as lca
>>> lca.exercises.check("00.1", ...)  # nothing filled in yet
Exercise 00.1: not answered yet. Put your answer in place of the three dots and run the cell again.
"""

from lca_widgets.exercises.book import (
    SOLUTIONS_VARIABLE,
    check,
    hint,
    listed,
    show,
    solution,
    solutions,
)
from lca_widgets.exercises.exercise import Exercise, Page, Verdict

__all__ = [
    "SOLUTIONS_VARIABLE",
    "Exercise",
    "Page",
    "Verdict",
    "check",
    "hint",
    "listed",
    "show",
    "solution",
    "solutions",
]
