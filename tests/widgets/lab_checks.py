"""What holds of every lab, and how the tables of one are read."""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

PATIENCE = 30  # seconds until a wait counts as hung


def rows(kind, table, measurement):
    """What a measurement adds to one of a lab's tables."""
    return np.array(list(kind.tables[table].rows(measurement)), dtype=float)


@contextmanager
def finished_on_screen(kind, settings) -> Iterator:
    """A lab that has run, of which chart, words and table were told all that it measured."""
    lab = kind(**settings)
    lab.start()
    assert lab.wait(PATIENCE)
    assert len(lab.table()) >= len(lab.measurements)
    for name, table in kind.tables.items():
        drawn = [row for m in lab.measurements for row in table.rows(m)]
        assert np.array_equal(lab.chart.rows(name), np.array(drawn, dtype=float), equal_nan=True)
        assert lab.chart.rows(name).shape[1] == len(table.columns)
    assert kind.describe(lab.measurements[-1]) in html.unescape(lab._sentence.value)
    yield lab
    lab.close()


def assert_presets_and_controls_are_of_settings(kind):
    names = {field.name for field in dataclasses.fields(kind.settings_type)}
    for preset in kind.presets.values():
        assert dataclasses.replace(kind.settings_type(), **preset)
    assert {control.name for control in (*kind.header, *kind.controls)} <= names
