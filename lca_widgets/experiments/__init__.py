"""The paper's experiments as plain functions: settings in, records out."""

from lca_widgets.experiments.magnitude import MagnitudeSettings, magnitude

__all__ = ["MagnitudeSettings", "magnitude"]
