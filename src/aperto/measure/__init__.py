"""Figures against the limits of this machine: plan, check, bench."""
