"""Changing models: a readable torch twin, training and export. Needs `aperto[adapt]`."""
