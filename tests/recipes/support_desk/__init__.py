"""The support desk's recipe."""
