"""What an exercise is, and how an answer is compared with its solution.

An exercise is written as the function that solves it: the docstring explains, the body is the
solution that a lecturer can show, and what it returns is what answers are compared with.
"""

from __future__ import annotations

import ast
import copy
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lca_widgets._checks import require_integer
from lca_widgets._format import number

__all__ = [
    "Answer",
    "Choice",
    "Exercise",
    "Function",
    "Number",
    "Page",
    "Vector",
    "Verdict",
    "exercise",
]


class Answer(Protocol):
    """A sort of answer: what is asked for, and when two of them are the same."""

    @property
    def asked(self) -> str:
        """What is asked for, after "your answer must be"."""

    def same(self, answer: Any, right: Any) -> bool:
        """Compare an answer with the right one.

        Raises:
            TypeError, ValueError: the answer is of another sort; the message says so.
        """


@dataclass(frozen=True)
class Number:
    """A number, right within ``rtol`` of the right one's size, or within ``atol``."""

    rtol: float
    atol: float = 0.0

    @property
    def asked(self) -> str:
        """What is asked for."""
        near = f"{100 * self.rtol:.2g} %" if self.rtol else f"{self.atol:g}"
        return f"a number, right to {near}"

    def same(self, answer: Any, right: Any) -> bool:
        """Compare two numbers; infinity is a number, too."""
        value = _array(answer)
        if value.size != 1:
            raise ValueError(f"one number expected, got {value.size}")
        return _close(value.reshape(()), np.asarray(right, dtype=float), self.rtol, self.atol)


@dataclass(frozen=True)
class Vector:
    """A list of ``length`` numbers, each right within ``rtol``."""

    length: int
    rtol: float

    @property
    def asked(self) -> str:
        """What is asked for."""
        return f"a list of {self.length} numbers, each right to {100 * self.rtol:.2g} %"

    def same(self, answer: Any, right: Any) -> bool:
        """Compare number by number."""
        values = _array(answer).reshape(-1)
        if values.size != self.length:
            raise ValueError(f"{self.length} numbers expected, got {values.size}")
        return _close(values, np.asarray(right, dtype=float), self.rtol, 0.0)


@dataclass(frozen=True, init=False)
class Choice:
    """One of a few texts."""

    options: tuple[str, ...]

    def __init__(self, *options: str) -> None:
        object.__setattr__(self, "options", options)

    @property
    def asked(self) -> str:
        """What is asked for."""
        return "one of " + ", ".join(f'"{option}"' for option in self.options)

    def same(self, answer: Any, right: Any) -> bool:
        """Compare texts; capitals and blanks around do not count."""
        known = {option.casefold(): option for option in self.options}
        text = answer.strip().casefold() if isinstance(answer, str) else answer
        if not isinstance(text, str) or text not in known:
            raise ValueError(f"{answer!r} is none of the texts to choose from")
        return known[text] == right


@dataclass(frozen=True, init=False)
class Function:
    """A function; called with each of ``inputs``, it returns what the solution's function does."""

    inputs: tuple[tuple[Any, ...], ...]
    rtol: float

    def __init__(self, *inputs: tuple[Any, ...], rtol: float) -> None:
        object.__setattr__(self, "inputs", inputs)
        object.__setattr__(self, "rtol", rtol)

    @property
    def asked(self) -> str:
        """What is asked for."""
        return f"a function (its name, without brackets), right to {100 * self.rtol:.2g} %"

    def same(self, answer: Any, right: Any) -> bool:
        """Compare what the two functions return, for every input."""
        if not callable(answer):
            raise TypeError(f"a function expected, got {type(answer).__name__}")
        return all(self._same_at(arguments, answer, right) for arguments in self.inputs)

    def _same_at(self, arguments: tuple[Any, ...], answer: Any, right: Any) -> bool:
        expected = _array(right(*copy.deepcopy(arguments)))
        try:
            # Copies: a reader's function may write into what it is given.
            returned = answer(*copy.deepcopy(arguments))
        except Exception as error:  # whatever a reader's function raises, it is told to the reader
            shown = ", ".join(_short(argument) for argument in arguments)
            raise ValueError(
                f"called with ({shown}), it raised {type(error).__name__}: {error}"
            ) from error
        values = _array(returned)
        if values.shape != expected.shape:
            raise ValueError(f"it returned shape {values.shape}, {expected.shape} expected")
        scale = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
        return _close(values, expected, self.rtol, self.rtol * scale)


@dataclass(frozen=True)
class Page:
    """A text in Markdown, which a notebook shows set; `print` shows its plain summary."""

    markdown: str
    plain: str

    def __repr__(self) -> str:
        return self.plain

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, str]:
        return {"text/markdown": self.markdown, "text/plain": self.plain}


@dataclass(frozen=True, repr=False)
class Verdict(Page):
    """What was found about an answer.

    Attributes:
        correct: Whether it is right; ``None`` where nothing was answered.
    """

    correct: bool | None = None

    def __bool__(self) -> bool:
        return self.correct is True


@dataclass(frozen=True, eq=False)
class Exercise:
    """A question, and the function that answers it.

    Attributes:
        key: Notebook and number, ``"01.3"``.
        title: A few words.
        level: 1 (look) to 3 (derive or write code).
        question: Markdown with formulas.
        hints: Markdown, from a nudge to nearly all.
        answer: Which sort of answer is asked for.
        solve: Returns the right answer; its docstring explains, its body is shown as the solution.
        mistakes: What to say to a likely wrong answer: the words, and a function returning it.
    """

    key: str
    title: str
    level: int
    question: str
    hints: tuple[str, ...]
    answer: Answer
    solve: Callable[[], Any]
    mistakes: Mapping[str, Callable[[], Any]]

    @property
    def label(self) -> str:
        """What it is called in every message."""
        return f"Exercise {self.key}"

    @cached_property
    def right(self) -> Any:
        """The right answer, found once: some solutions train a network."""
        return self.solve()

    @property
    def explanation(self) -> str:
        """Why the answer is what it is, in Markdown."""
        return inspect.getdoc(self.solve) or ""

    def check(self, answer: Any) -> Verdict:
        """Compare an answer with the solution; ``...`` is no answer yet.

        A right answer is told the explanation; a wrong one is not.
        """
        if answer is ...:
            return self._verdict(
                None,
                "not answered yet. Put your answer in place of the three dots and run the cell "
                "again.",
            )
        try:
            correct = self.answer.same(answer, self.right)
        except (TypeError, ValueError) as error:
            return self._verdict(
                False, f"not checked: {error}. Your answer must be {self.answer.asked}."
            )
        if correct:
            return self._verdict(True, f"right. {self.explanation}".strip())
        for words, mistaken in self.mistakes.items():
            if self._is_mistake(answer, mistaken):
                return self._verdict(False, f"not yet. {words}")
        return self._verdict(
            False, f'not yet. Open a hint above, or call lca.exercises.hint("{self.key}").'
        )

    def _is_mistake(self, answer: Any, mistaken: Callable[[], Any]) -> bool:
        try:
            return self.answer.same(answer, mistaken())
        except (TypeError, ValueError):  # a function that fails on a later input than the first
            return False

    def _verdict(self, correct: bool | None, words: str) -> Verdict:
        mark = {True: "✔", False: "✘", None: "○"}[correct]
        plain = f"{self.label}: {words}"
        return Verdict(f"{mark} **{self.label}**: {words}", plain, correct)

    def page(self) -> Page:
        """The question, what sort of answer it asks for, and the hints, folded."""
        stars = "★" * self.level + "☆" * (3 - self.level)
        parts = [
            f"#### {self.key} · {self.title} &nbsp; {stars}",
            textwrap.dedent(self.question).strip(),
            f"*Answer:* {self.answer.asked}.",
        ]
        parts += [_folded(f"Hint {k}", hint) for k, hint in enumerate(self.hints, start=1)]
        count = f"{len(self.hints)} hint{'s' if len(self.hints) != 1 else ''}"
        return Page("\n\n".join(parts), f"{self.label} · {self.title} ({stars}, {count})")

    def hint(self, number_of_hint: int) -> Page:
        """One hint; 1 is the first."""
        require_integer("number", number_of_hint, low=1, high=len(self.hints))
        text = textwrap.dedent(self.hints[number_of_hint - 1]).strip()
        name = f"{self.label}, hint {number_of_hint} of {len(self.hints)}"
        return Page(f"**{name}.** {text}", f"{name}: {text}")

    def solution(self) -> Page:
        """The explanation, the code and the value of the solution."""
        code = _body_of(self.solve)
        value = "" if callable(self.right) else f"\n\nResult: {_shown(self.right)}."
        markdown = (
            f"**{self.label}, solution.** {self.explanation}\n\n```python\n{code}\n```{value}"
        )
        return Page(markdown, f"{self.label}, solution: {self.explanation}\n\n{code}{value}")


def exercise(
    key: str,
    title: str,
    *,
    level: int,
    question: str,
    hints: Sequence[str],
    answer: Answer,
    mistakes: Mapping[str, Callable[[], Any]] | None = None,
) -> Callable[[Callable[[], Any]], Exercise]:
    """Make an exercise of the function that solves it; the arguments are `Exercise`'s fields.

    Example:
        >>> @exercise("99.1", "Two", level=1, question="1 + 1?", hints=("Count.",),
        ...           answer=Number(rtol=0.01))
        ... def two():
        ...     '''One and one make two.'''
        ...     return 2
        >>> two.check(2)
        Exercise 99.1: right. One and one make two.
        >>> bool(two.check(3))
        False
    """

    def make(solve: Callable[[], Any]) -> Exercise:
        return Exercise(key, title, level, question, tuple(hints), answer, solve, mistakes or {})

    return make


def _array(value: Any) -> np.ndarray[Any, np.dtype[np.float64]]:
    if hasattr(value, "detach"):  # a tensor, wherever it is
        value = value.detach().cpu()
    try:
        values = np.asarray(value)
        if values.dtype.kind not in "iuf":  # neither texts nor truths nor complex numbers
            raise TypeError
        return values.astype(np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"numbers expected, got {_short(value)}") from None


def _close(value: Any, right: Any, rtol: float, atol: float) -> bool:
    return bool(np.isclose(value, right, rtol=rtol, atol=atol, equal_nan=False).all())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    values = _array(value).reshape(-1)
    return ", ".join(number(float(one)) if math.isfinite(one) else str(one) for one in values)


def _folded(summary: str, text: str) -> str:
    # Blank lines: or Markdown inside the fold is not set.
    text = textwrap.dedent(text).strip()
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


def _body_of(function: Callable[..., Any]) -> str:
    """The source of a function without its decorator and its docstring."""
    source = textwrap.dedent(inspect.getsource(function))
    [definition] = ast.parse(source).body
    assert isinstance(definition, ast.FunctionDef)
    lines = source.splitlines()
    if function.__doc__:
        docstring = definition.body[0]
        del lines[docstring.lineno - 1 : docstring.end_lineno]
    return "\n".join(lines[definition.lineno - 1 :])
