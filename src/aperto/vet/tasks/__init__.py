"""Capability suites: loaders of publishers' files, prompts, and graders of the final text."""
