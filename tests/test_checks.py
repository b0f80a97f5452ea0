"""Refusals name the argument, the value given and what is accepted."""

import math

import numpy as np
import pytest

from lca_widgets._checks import require_in_range, require_integer, require_one_of


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float64(0.25)])
def test_numbers_within_the_range_pass_its_ends_included(value):
    require_in_range("gain", value, low=0, high=1)


@pytest.mark.parametrize("value", [-1e-9, 1.0000001, math.nan, math.inf, -math.inf])
def test_numbers_outside_are_refused(value):
    with pytest.raises(ValueError, match=f"^gain must be between 0 and 1, got {value}$"):
        require_in_range("gain", value, low=0, high=1)


@pytest.mark.parametrize(
    ("value", "ends", "words"),
    [
        (0, {"low": 0, "open_low": True}, "above 0, got 0"),
        (-1, {"low": 0}, "at least 0, got -1"),
        (math.inf, {"low": 0, "open_low": True}, "finite and above 0, got inf"),
        (math.nan, {"low": 0}, "at least 0, got nan"),
        (1.0, {"low": 0, "high": 1, "open_high": True}, r"at least 0 and below 1, got 1\.0"),
        (0, {"low": 0, "high": 1, "open_low": True}, "above 0 and at most 1, got 0"),
        (2**31, {"low": 0, "high": 2**31 - 1}, "between 0 and 2147483647, got 2147483648"),
    ],
)
def test_the_message_says_exactly_what_is_accepted(value, ends, words):
    with pytest.raises(ValueError, match=f"^x must be {words}$"):
        require_in_range("x", value, **ends)


@pytest.mark.parametrize("value", ["1", None, True, 1j, [1]])
def test_what_is_no_number_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^gain must be a number \(int or float\), got .* \("):
        require_in_range("gain", value, low=0)


def test_integers_pass():
    require_integer("depth", 2, low=2)
    require_integer("depth", 10**400, low=2)


@pytest.mark.parametrize("value", [2.0, "2", True, None])
def test_what_is_no_integer_is_a_type_error(value):
    with pytest.raises(TypeError, match=r"^depth must be a whole number \(int\), got .* \("):
        require_integer("depth", value, low=2)


def test_integers_outside_are_refused():
    with pytest.raises(ValueError, match=r"^depth must be at least 2, got 1$"):
        require_integer("depth", 1, low=2)


@pytest.mark.parametrize("value", ["He", None, ["he"], {}])
def test_a_name_that_is_not_accepted_is_refused_with_those_that_are(value):
    with pytest.raises(ValueError, match=r"^init must be one of 'he', 'lecun', got ") as error:
        require_one_of("init", value, {"he": 1, "lecun": 2})
    assert str(error.value).endswith(repr(value))
    require_one_of("init", "he", {"he": 1, "lecun": 2})
