"""Measuring and gating: capability scores, safety suites, statistics, signed verdicts."""
