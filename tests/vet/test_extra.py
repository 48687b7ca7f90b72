"""Without scipy, vet says what to install."""

from __future__ import annotations

import importlib
import importlib.util

import pytest

import aperto.vet
from aperto.errors import MissingExtraError


def test_a_missing_scipy_is_told_with_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'aperto\[vet\]'"):
        importlib.reload(aperto.vet)
