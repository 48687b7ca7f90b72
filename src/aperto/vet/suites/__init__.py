"""Suites of our own, generated and graded by exact rules: no judge, no data, no network."""
