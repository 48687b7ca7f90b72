"""Publishers' own graders, out of their pinned wheels, to compare ours with in long tests."""

from __future__ import annotations

import importlib
import re
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


def ifbench_checker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Path]:
    """`follows` of the publisher as a function of (instruction, text), and its sample answers.

    What it needs of nltk is stood in for by the few functions themselves; checks that need its
    word lists, its taggers or other packages are not to be asked.
    """
    place = unpacked("ifbench", folder)
    monkeypatch.syspath_prepend(str(place))

    class Words:
        def __init__(self, pattern: str) -> None:
            self._pattern = pattern

        def tokenize(self, text: str) -> list[str]:
            return re.findall(self._pattern, text)

    def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
        return [tuple(text[index : index + n]) for index in range(len(text) - n + 1)]

    made = {
        "nltk": {
            "download": lambda *given, **more: True,
            "data": types.SimpleNamespace(find=lambda name: name),
            "ngrams": ngrams,
            "tokenize": types.SimpleNamespace(RegexpTokenizer=Words),
        },
        "spacy": {},
        "spacy.cli": {"download": lambda name: None},
        "emoji": {},
        "syllapy": {},
    }
    for name, content in made.items():
        module = types.ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    instructions = importlib.import_module("ifbench.instructions_registry").INSTRUCTION_DICT

    def follows(instruction: tuple[str, Any], text: str) -> bool:
        name, arguments = instruction
        one = instructions[name](name)
        one.build_description(**arguments)
        return bool(text.strip() and one.check_following(text))

    return follows, place / "ifbench" / "data" / "sample_output.jsonl"
