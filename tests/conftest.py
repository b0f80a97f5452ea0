"""What all tests share."""

from hypothesis import settings

# Timings of a busy machine are no finding, and a run that fails must fail again.
settings.register_profile("lca_widgets", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("lca_widgets")
