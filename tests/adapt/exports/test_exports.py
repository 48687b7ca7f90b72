"""What `aperto adapt` made of nano, live, merged and elsewhere: one model in every program.

Of two programs that compute in float32, each is some rounding of the exact result; the bound and
its derivation are those of tests/oracle/test_exact.py: the distance from the float64 formulas, at
most MULTIPLE times that of the other program.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.native.harness import whole
from tests.oracle import plain
from tests.oracle.test_exact import assert_as_near_as_the_oracles
from tests.tiny import hf_oracle, torch_oracle
from typer.testing import CliRunner

from aperto.adapt import lora
from aperto.adapt.model import GptOss
from aperto.cli.main import app
from aperto.engine import variants
from aperto.engine.load import load_model
from aperto.formats import open_checkpoint
from aperto.formats.adapter import read_adapter
from aperto.formats.hub import resolve_model
from aperto.formats.lineage import read_lineage
from aperto.harmony import Conversation, Message, Role, render
from aperto.tokenizer import Tokenizer

QUESTIONS = {"What is baked on Monday?": "Rye bread.", "Who keeps the key?": "Marta keeps it."}
OPTIONS = (
    "--steps=8",
    "--targets=attention,experts,router",
    "--rank=4",
    "--learning-rate=4e-3",
    "--length=96",
    "--rows-per-step=2",
    "--rows-per-batch=2",
    "--held-out=0",
)
LAYOUTS = {"hf": "hf", "openai": "openai", "gguf": "model.gguf"}
NEW_TOKENS = 24


def aperto(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the adapter `desk`, and the model merged with it in every layout."""
    folder = tmp_path_factory.mktemp("exports")
    rows = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in QUESTIONS.items()
    ]
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    aperto("adapt", "nano", str(data), "--out", str(folder / "desk"), *OPTIONS)
    for layout, name in LAYOUTS.items():
        out = ("--layout", layout, "--out", str(folder / name))
        assert "vetted: no" in aperto("merge", "nano", str(folder / "desk"), *out)
    return folder


def prompt() -> np.ndarray:
    tokenizer = Tokenizer.from_checkpoint(open_checkpoint(resolve_model("nano")).tokenizer_source())
    asked = Conversation([Message(Role.USER, next(iter(QUESTIONS)))])
    return np.array(render(asked, tokenizer), np.int32)


def greedy(checkpoint_path: Path) -> np.ndarray:
    """The prompt and what the core says after it at precision exact."""
    core = load_model(open_checkpoint(checkpoint_path), precision="exact", num_threads=1)
    ids = prompt()
    for _ in range(NEW_TOKENS):
        ids = np.append(ids, np.argmax(whole(core, ids)[-1]).astype(np.int32))
    return ids


@pytest.mark.parametrize("layout", ["hf", "openai"])
def test_the_merged_model_in_transformers_and_gpt_oss(made: Path, layout: str) -> None:
    """Logits within the bound, and the same greedy tokens."""
    path = made / LAYOUTS[layout]
    oracle = hf_oracle(path) if layout == "hf" else torch_oracle(path)
    ids = greedy(path)
    begin = len(ids) - NEW_TOKENS
    theirs = oracle(ids.tolist())
    np.testing.assert_array_equal(theirs[begin - 1 : -1].argmax(-1), ids[begin:])
    checkpoint = open_checkpoint(path)
    core = load_model(checkpoint, precision="exact", num_threads=1)
    truth = plain.logits(checkpoint, ids.tolist())
    assert_as_near_as_the_oracles(truth, whole(core, ids), [theirs])


def test_every_layout_has_the_same_bits(made: Path) -> None:
    first, *others = (
        whole(load_model(open_checkpoint(made / name), precision="exact"), prompt())
        for name in LAYOUTS.values()
    )
    for other in others:
        np.testing.assert_array_equal(first, other)


def test_the_adapter_in_peft_the_twin_and_the_engine(made: Path) -> None:
    """Live in three programs; the truth is the twin in float64 (see tests/oracle/test_twin.py)."""
    base = open_checkpoint(resolve_model("nano"))
    adapter = read_adapter(made / "desk", base.config)
    assert any("moe.down" in key for key in adapter.deltas)
    assert any("attn.q" in key for key in adapter.deltas)
    ids = prompt()
    core = load_model(base, precision="exact", num_threads=1)
    found = whole(core, ids, variants.build(core, adapter))
    twin, exact = GptOss.from_checkpoint(base), GptOss.from_checkpoint(base).double()
    lora.load(twin, adapter)
    lora.load(exact, adapter)
    ids_of = torch.from_numpy(ids.astype(np.int64))[None]
    with torch.inference_mode():
        of_twin = twin(ids_of)[0].numpy()
        truth = exact.double()(ids_of)[0].numpy()
    assert np.abs(truth - whole(core, ids)).max() > 1  # the adapter says something
    theirs = _peft(made / "desk", ids_of)
    assert_as_near_as_the_oracles(truth, found, [theirs])
    assert_as_near_as_the_oracles(truth, of_twin, [theirs])


def _peft(adapter: Path, ids: torch.Tensor) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import GptOssForCausalLM, Mxfp4Config

        base = GptOssForCausalLM.from_pretrained(
            resolve_model("nano"),
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            quantization_config=Mxfp4Config(dequantize=True),
        )
        live = PeftModel.from_pretrained(base.float(), adapter).eval()
        with torch.inference_mode():
            found: np.ndarray = live(ids).logits[0].numpy()
    return found


def test_all_that_is_derived_says_so(made: Path) -> None:
    """Lineage, not vetted, LICENSE and NOTICE: adapted, merged, and changed in shape."""
    aperto("shape", "top-k", "nano", "1", "--out", str(made / "shaped"))
    aperto("convert", str(made / "hf"), str(made / "again.gguf"), "--layout", "gguf")
    for name in ("desk", "hf", "openai", "shaped"):
        lineage = read_lineage(made / name)
        assert lineage is not None and lineage.vetted == "no", name
        assert lineage.parents[0].name == "nano" and lineage.steps, name
        assert "Apache License" in (made / name / "LICENSE").read_text(), name
        assert "aperto" in (made / name / "NOTICE").read_text(), name
    for name in ("model.gguf", "again.gguf"):
        lineage = open_checkpoint(made / name).lineage
        assert lineage == read_lineage(made / "hf"), name
        assert b"Apache License" in (made / name).read_bytes(), name
    assert [parent.name for parent in lineage.parents] == ["nano", str(made / "desk")]
