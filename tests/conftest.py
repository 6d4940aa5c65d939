"""Settings of the property tests: repeatable by default, many fresh examples with the profile `long`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

_QUIET = tuple(HealthCheck)  # random models are slow to draw, by nature
settings.register_profile("quick", deadline=None, derandomize=True, suppress_health_check=_QUIET)
settings.register_profile(
    "long", max_examples=5000, deadline=None, suppress_health_check=_QUIET, print_blob=True
)
settings.load_profile("quick")
