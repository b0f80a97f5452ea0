"""All exercises by their keys, and what a notebook calls on them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from functools import cache
from typing import Any

from lca_widgets._checks import require_one_of
from lca_widgets.exercises.exercise import Exercise, Page, Verdict

__all__ = ["SOLUTIONS_VARIABLE", "check", "hint", "listed", "show", "solution", "solutions"]

# Set to 1 by a lecturer: every question then stands with its solution.
SOLUTIONS_VARIABLE = "LCA_SOLUTIONS"

# Notebook → the module that holds its questions.
_MODULES = {
    "00": "start",
    "01": "linear_models",
    "02": "curvature_matrices",
    "03": "magnitude",
    "04": "weight_domination",
    "05": "false_minimum",
    "06": "conditioning",
    "07": "last_layer",
    "08": "final_norm",
}

_switch: dict[str, bool] = {}  # {"on": …} once someone has decided


def show(key: str) -> Page:
    """Show a question with its hints, folded; and with its solution where these are switched on.

    Args:
        key: Notebook and number, ``"01.3"``.

    Raises:
        ValueError: there is no such exercise; the message lists the notebook's.

    Example:
        >>> show("00.1")  # doctest: +ELLIPSIS
        Exercise 00.1 · ...
    """
    exercise = _find(key)
    page = exercise.page()
    if not _switched_on():
        return page
    answer = exercise.solution()
    return Page(f"{page.markdown}\n\n{answer.markdown}", f"{page.plain}\n\n{answer.plain}")


def check(key: str, answer: Any) -> Verdict:
    """Compare an answer with the solution.

    Args:
        key: Notebook and number, ``"01.3"``.
        answer: What the question asks for; ``...`` while there is none.

    Returns:
        A verdict that displays itself; true if the answer is right. An answer of the wrong sort is
        no error: the verdict says what is expected.

    Raises:
        ValueError: there is no such exercise.
    """
    return _find(key).check(answer)


def hint(key: str, number: int = 1) -> Page:
    """Show one hint of an exercise.

    Raises:
        ValueError: there is no such exercise, or no such hint.
    """
    return _find(key).hint(number)


def solution(key: str) -> Page:
    """Show the solution of one exercise, whatever the switch says.

    Raises:
        ValueError: there is no such exercise.
    """
    return _find(key).solution()


def solutions(on: bool) -> None:
    """Switch solutions on or off: `show` gives them with the question while they are on.

    They are off at the start, unless the environment variable ``LCA_SOLUTIONS`` is 1.

    Raises:
        TypeError: ``on`` is neither true nor false.
    """
    if not isinstance(on, bool):
        raise TypeError(f"on must be True or False, got {on!r}")
    _switch["on"] = on


def listed(notebook: str) -> tuple[Exercise, ...]:
    """Return a notebook's exercises in their order.

    Args:
        notebook: Its two digits, ``"01"``.

    Raises:
        ValueError: there is no such notebook.
    """
    require_one_of("notebook", notebook, _MODULES)
    return tuple(_exercises(notebook).values())


def _switched_on() -> bool:
    return _switch.get("on", os.environ.get(SOLUTIONS_VARIABLE) == "1")


def _find(key: str) -> Exercise:
    notebook = str(key).partition(".")[0]
    if notebook not in _MODULES:
        raise ValueError(
            f"key must begin with a notebook's number ({', '.join(_MODULES)}), got {key!r}"
        )
    known = _exercises(notebook)
    if key not in known:
        raise ValueError(f"key must be one of {', '.join(known)}, got {key!r}")
    return known[key]


@cache
def _exercises(notebook: str) -> Mapping[str, Exercise]:
    module = importlib.import_module(f"lca_widgets.exercises.{_MODULES[notebook]}")
    found = [value for value in vars(module).values() if isinstance(value, Exercise)]
    return {exercise.key: exercise for exercise in sorted(found, key=_place)}


def _place(exercise: Exercise) -> int:
    return int(exercise.key.partition(".")[2])
