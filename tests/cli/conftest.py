from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.tiny import write_tiny
from typer.testing import CliRunner, Result

from aperto.cli.main import app


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads or writes the user's own settings, cache or history."""
    for variable in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    for variable in ("APERTO_CONFIG", "APERTO_CACHE", "APERTO_ISA", "APERTO_LOG"):
        monkeypatch.delenv(variable, raising=False)
    yield


@pytest.fixture
def aperto():
    """Run the program with some arguments, in this process."""

    def run(*arguments: str, stdin: str | None = None) -> Result:
        return CliRunner().invoke(app, list(arguments), input=stdin)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model") / "tiny", tokenizer=True)
