"""Measuring and gating: capability scores, safety suites, statistics, signed verdicts."""

from importlib.util import find_spec

from aperto.errors import MissingExtraError

if find_spec("scipy") is None:
    raise MissingExtraError("scipy", "vet")
