"""Makes the shared adversary importable, and sets up hypothesis: no timing, examples enough to be worth it."""

from __future__ import annotations

from pathlib import Path

from hypothesis import HealthCheck, settings

TESTS = Path(__file__).resolve().parent.parent

settings.register_profile(
    "format",
    deadline=None,
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("format")
