"""Publishers' own graders, out of their pinned wheels, to compare ours with in long tests."""

from __future__ import annotations

import importlib
import subprocess
import sys
import types
import zipfile
from pathlib import Path
from typing import Any

import pytest

from aperto.vet.sources import source


def unpacked(source_id: str, folder: Path) -> Path:
    """Folder with all files of a source's wheel; skips where the package index has it not."""
    one = source(source_id)
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*pip, f"{one.origin}=={one.pin}"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"{one.origin} {one.pin} cannot be had here")
    with zipfile.ZipFile(folder / str(one.archive)) as wheel:
        wheel.extractall(folder / source_id)
    return folder / source_id


def bfcl_checker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`ast_checker` for Python, as a function of (description, calls, right answers)."""
    monkeypatch.syspath_prepend(str(unpacked("bfcl", folder)))
    # What it imports for other models and languages needs packages that are of no use here.
    config = types.ModuleType("bfcl_eval.constants.model_config")
    config.MODEL_CONFIG_MAPPING = {  # type: ignore[attr-defined]
        "any": types.SimpleNamespace(underscore_to_dot=True)
    }
    monkeypatch.setitem(sys.modules, config.__name__, config)
    for name in ("java", "js"):
        made = types.ModuleType(
            f"bfcl_eval.eval_checker.ast_eval.type_convertor.{name}_type_converter"
        )
        setattr(made, f"{name}_type_converter", None)
        monkeypatch.setitem(sys.modules, made.__name__, made)
    checker = importlib.import_module("bfcl_eval.eval_checker.ast_eval.ast_checker")
    enums = importlib.import_module("bfcl_eval.constants.enums")

    def check(function: Any, calls: Any, right: Any) -> bool:
        arguments = (function, calls, right, enums.Language.PYTHON, "simple_python", "any")
        return bool(checker.ast_checker(*arguments)["valid"])

    return check
