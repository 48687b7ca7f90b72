"""Experiments on packed weights: a checkpoint in, a changed one out, nothing dequantised."""
