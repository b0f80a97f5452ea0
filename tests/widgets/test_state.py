"""A lab's state string: what is written is read back, and what is wrong is named."""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lca_widgets.experiments import MagnitudeSettings
from lca_widgets.widgets.state import decode_state, encode_state

settings = st.builds(
    MagnitudeSettings,
    depth=st.integers(2, 100),
    gain=st.floats(1e-3, 1e3),
    init=st.sampled_from(["he", "lecun"]),
    data=st.text(min_size=1),
    seed=st.integers(0, 1000),
)


@given(settings, st.lists(settings, max_size=3))
def test_what_is_written_is_read_back(current, pins):
    assert decode_state(encode_state(current, pins), MagnitudeSettings) == (current, pins)


def test_only_differences_from_the_defaults_are_written():
    assert encode_state(MagnitudeSettings(depth=10)) == "depth=10"
    assert encode_state(MagnitudeSettings()) == "default"


def test_commas_stay_readable():
    assert encode_state(MagnitudeSettings(data="a,b")) == "data=a,b"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("depht=10", "no setting 'depht'; there are depth, width"),
        ("depth=ten", "depth must be of type int, got 'ten'"),
        ("depth", "state must be name=value&…"),
        ("", "state must be name=value&…"),
        ("depth=10|gain=x", "gain must be of type float, got 'x'"),
        ("depth=1000", "depth must be between 2 and 100, got 1000"),
    ],
)
def test_a_wrong_state_is_refused_with_words(text, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        decode_state(text, MagnitudeSettings)


@dataclass(frozen=True)
class Switched:
    on: bool = False


def test_a_switch_is_read_back_and_takes_no_other_word():
    assert decode_state(encode_state(Switched(on=True)), Switched) == (Switched(on=True), [])
    assert decode_state("on=False", Switched) == (Switched(), [])
    with pytest.raises(ValueError, match="on must be of type bool, got 'yes'"):
        decode_state("on=yes", Switched)
