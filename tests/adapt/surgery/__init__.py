"""Experiments on packed weights."""
