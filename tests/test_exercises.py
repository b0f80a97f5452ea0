"""Exercises: every solution is right by its own check, every wrong answer is told apart."""

from __future__ import annotations

import ast
import re

import nbformat
import numpy as np
import pytest
import torch

from lca_widgets import exercises
from lca_widgets.exercises.book import _MODULES
from lca_widgets.exercises.exercise import Choice, Function, Number, Vector, exercise
from tests.notebooks.refresh import NOTEBOOKS

EVERY = [one for notebook in _MODULES for one in exercises.listed(notebook)]
every_exercise = pytest.mark.parametrize("one", EVERY, ids=lambda one: one.key)
every_notebook = pytest.mark.parametrize("notebook", _MODULES)


def made(answer, right, mistakes=None, hints=("Look.", "Think.")):
    @exercise(
        "99.1", "A title", level=2, question="Why?", hints=hints, answer=answer, mistakes=mistakes
    )
    def solve():
        """Because."""
        return right

    return solve


@every_exercise
def test_the_solution_is_right(one):
    verdict = one.check(one.right)
    assert verdict.correct is True, verdict


@every_exercise
def test_what_is_not_the_solution_is_wrong(one):
    right = one.right
    if isinstance(one.answer, Choice):
        wrong = [option for option in one.answer.options if option != right]
        assert right in one.answer.options
        assert wrong
    elif isinstance(one.answer, Function):
        wrong = [lambda *inputs: 1.5 * np.asarray(right(*inputs)) + 0.5]
    else:
        wrong = [1.5 * np.asarray(right, dtype=float) + 0.5, -1.0 - np.asarray(right, dtype=float)]
        wrong = [value for value in wrong if np.isfinite(value).any()] or [1.0]
    assert [one.check(answer).correct for answer in wrong] == [False] * len(wrong)


@every_exercise
def test_each_likely_mistake_is_wrong_and_gets_its_own_words(one):
    for words, mistaken in one.mistakes.items():
        verdict = one.check(mistaken())
        assert verdict.correct is False
        assert words in verdict.plain


@every_exercise
def test_it_can_be_asked_hinted_at_and_solved(one):
    page = one.page()
    assert 1 <= one.level <= 3
    assert len(one.hints) >= 1
    assert page.markdown.count("<details>") == len(one.hints)
    assert one.answer.asked in page.markdown
    for text in (page.markdown, one.solution().markdown):
        assert text.count("$") % 2 == 0  # formulas are closed
    body = re.search(r"```python\n(.*)\n```", one.solution().markdown, re.DOTALL)[1]
    [definition] = ast.parse(body).body
    assert isinstance(definition, ast.FunctionDef)
    assert not any(isinstance(line, ast.Expr) for line in definition.body)  # no docstring, no rest
    assert len(one.solution().markdown) > len(body) + 60  # explained, not only coded


@every_notebook
def test_a_notebook_has_five_exercises_or_more_of_rising_difficulty(notebook):
    found = exercises.listed(notebook)
    assert [one.key for one in found] == [f"{notebook}.{k}" for k in range(1, len(found) + 1)]
    assert len(found) >= 5
    levels = [one.level for one in found]
    assert levels == sorted(levels)
    assert len(set(levels)) > 1


@every_notebook
def test_the_notebook_asks_and_checks_each_of_them_once(notebook):
    [path] = NOTEBOOKS.glob(f"{notebook}_*.ipynb")
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells]
    keys = [one.key for one in exercises.listed(notebook)]
    for call in ("show", "check"):
        asked = re.findall(rf'exercises\.{call}\("([\d.]+)"', "\n".join(cells))
        assert sorted(set(asked), key=asked.index) == keys
    unanswered = [cell for cell in cells if "answer = ..." in cell]
    assert len(unanswered) == len(keys)


@pytest.mark.parametrize(
    ("answer", "right", "accepted", "refused"),
    [
        (Number(rtol=0.01), 4.0, [4, 4.03, np.float32(4), torch.tensor(4.0), [4.0]], [4.1, -4, 0]),
        (Number(rtol=0.0, atol=0.1), 0.0, [0.05], [0.2, np.nan]),
        (Number(rtol=0.01), np.inf, [np.inf], [1e30, -np.inf]),
        (Vector(2, rtol=0.01), [1.0, 0.0], [(1, 0), torch.tensor([1.0, 0.0])], [(0, 1)]),
        (Choice("Yes", "no"), "no", ["no", " NO "], ["yes"]),
        (Function((1.0,), (2.0,), rtol=0.01), lambda x: x * x, [lambda x: x**2], [lambda x: x]),
    ],
)
def test_answers_of_each_sort_are_told_apart(answer, right, accepted, refused):
    one = made(answer, right)
    assert all(one.check(value).correct for value in accepted)
    assert not any(one.check(value).correct for value in refused)


@pytest.mark.parametrize(
    ("answer", "right", "given", "words"),
    [
        (Number(rtol=0.01), 4.0, "four", "numbers expected, got 'four'. Your answer must be a num"),
        (Number(rtol=0.01), 4.0, [4.0, 4.0], "one number expected, got 2"),
        (Number(rtol=0.01), 4.0, None, "numbers expected, got None"),
        (Number(rtol=0.01), 4.0, True, "numbers expected, got True"),
        (Vector(2, rtol=0.01), [1.0, 2.0], [1.0], "2 numbers expected, got 1"),
        (Choice("yes", "no"), "no", "maybe", "'maybe' is none of the texts to choose from. Your"),
        (Choice("yes", "no"), "no", 3, 'must be one of "yes", "no"'),
        (Function((0.0,), rtol=0.01), abs, 3.0, "a function expected, got float"),
        (Function((0.0,), rtol=0.01), abs, lambda x: 1 / x, "called with (0.0), it raised ZeroDiv"),
        (Function((0.0,), rtol=0.01), abs, lambda x: [x, x], "it returned shape (2,), () expected"),
        (Function((0.0,), rtol=0.01), abs, lambda x: None, "numbers expected, got None"),
        (Number(rtol=0.01), 4.0, 4 + 1j, "numbers expected, got (4+1j)"),
        (Number(rtol=0.01), 4.0, 10**400, "numbers expected, got 1000"),
    ],
)
def test_an_answer_of_the_wrong_sort_is_told_what_is_expected(answer, right, given, words):
    verdict = made(answer, right).check(given)
    assert verdict.correct is False
    assert words in verdict.plain


def test_three_dots_are_no_answer():
    verdict = made(Number(rtol=0.01), 4.0).check(...)
    assert verdict.correct is None
    assert not verdict
    assert "not answered yet" in verdict.plain


def test_a_right_answer_is_explained_and_a_wrong_one_is_not():
    one = made(Number(rtol=0.01), 4.0)
    assert one.check(4.0).plain == "Exercise 99.1: right. Because."
    assert "Because" not in one.check(5.0).plain


def test_a_function_cannot_spoil_the_inputs_of_the_next_check():
    def spoil(x):
        x *= 0
        return 0.0

    one = made(Function((np.ones(2),), rtol=0.01), lambda x: x.sum())
    assert [one.check(spoil).correct for _ in range(2)] == [False, False]
    assert one.check(np.sum).correct


def test_a_function_that_fails_on_a_later_input_is_told_so_and_no_mistake_is_looked_for():
    one = made(Function((1.0,), (0.0,), rtol=0.01), lambda x: x + 1, {"Off.": lambda: lambda x: x})
    assert one.check(lambda x: 1 / x).plain.endswith('call lca.exercises.hint("99.1").')


def test_a_solution_shows_its_explanation_and_its_code_and_its_value():
    text = made(Number(rtol=0.01), 4.0).solution().markdown
    assert "Because." in text
    assert "return right" in text
    assert '"""' not in text
    assert "@exercise" not in text
    assert "Result: 4." in text


def test_hints_are_counted_from_one():
    one = made(Number(rtol=0.01), 4.0)
    assert one.hint(2).plain == "Exercise 99.1, hint 2 of 2: Think."
    with pytest.raises(ValueError, match="number must be between 1 and 2, got 3"):
        one.hint(3)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("01.99", "key must be one of 01.1, 01.2"),
        ("1.1", "key must begin with a notebook's number .00, 01"),
        (None, "key must begin with a notebook's number"),
    ],
)
def test_an_unknown_exercise_is_named(key, words):
    for call in (exercises.show, exercises.solution, exercises.hint):
        with pytest.raises(ValueError, match=words):
            call(key)
    with pytest.raises(ValueError, match="notebook must be one of '00', '01'"):
        exercises.listed(key)


def test_a_lecturer_switches_solutions_on_and_off(monkeypatch):
    monkeypatch.setattr("lca_widgets.exercises.book._switch", {})
    monkeypatch.delenv(exercises.SOLUTIONS_VARIABLE, raising=False)
    answer = exercises.solution("00.1").markdown
    assert answer not in exercises.show("00.1").markdown
    exercises.solutions(True)
    assert answer in exercises.show("00.1").markdown
    exercises.solutions(False)
    assert answer not in exercises.show("00.1").markdown
    with pytest.raises(TypeError, match="on must be True or False, got 1"):
        exercises.solutions(1)


def test_the_environment_switches_solutions_on(monkeypatch):
    monkeypatch.setattr("lca_widgets.exercises.book._switch", {})
    monkeypatch.setenv(exercises.SOLUTIONS_VARIABLE, "1")
    assert exercises.solution("00.1").markdown in exercises.show("00.1").markdown
