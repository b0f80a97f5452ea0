"""Live labs, one for each phenomenon; each is a widget, and ``.run(...)`` does it headless."""

from lca_widgets.labs.magnitude import Magnitude

__all__ = ["Magnitude"]
