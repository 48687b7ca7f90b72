import dataclasses
import gzip
import importlib.resources
import json
import os
from pathlib import Path

import numpy as np
import pytest
from tests.tiny import write_tiny

from aperto.engine.load import isa_names
from aperto.errors import FormatError
from aperto.formats import open_checkpoint
from aperto.harmony import Conversation
from aperto.measure import check, references
from aperto.measure.references import Logits, ReferenceCase


def outcome(checkpoint, name, **options):
    results = {result.name: result for result in check.check_model(checkpoint, **options)}
    return results[name]


@pytest.fixture
def checkpoint(tmp_path):
    return open_checkpoint(write_tiny(tmp_path / "tiny", tokenizer=True))


def rewrite(path, change):
    raw = json.loads(path.read_text())
    change(raw)
    path.write_text(json.dumps(raw))


def test_a_fresh_checkpoint_has_no_failures(checkpoint):
    statuses = {r.name: r.status for r in check.check_model(checkpoint)}
    assert statuses["dequantising"] == "PASS"
    assert statuses["tensors"] == "SKIPPED"
    assert statuses["logits"] == "SKIPPED"
    assert statuses["instruction sets"] == "SKIPPED"


def test_tensors_pass_against_their_manifest_and_fail_against_another(checkpoint):
    file = references.write_manifest(checkpoint)
    assert outcome(checkpoint, "tensors").status == "PASS"
    rewrite(file, lambda raw: raw["tensors"].update({"norm.weight": "0" * 64}))
    result = outcome(checkpoint, "tensors")
    assert result.status == "FAIL"
    assert "norm.weight" in result.detail
    assert "000000000000" in result.detail


def test_a_tensor_missing_from_the_manifest_fails(checkpoint):
    file = references.write_manifest(checkpoint)
    rewrite(file, lambda raw: raw["tensors"].pop("head.weight"))
    assert "head.weight is not in the manifest" in outcome(checkpoint, "tensors").detail


def test_hashes_are_the_same_in_both_safetensors_layouts(tmp_path):
    hashes = [
        dict(
            check.tensor_hashes(
                open_checkpoint(write_tiny(tmp_path / layout, layout=layout)),
                lambda done, total: None,
            )
        )
        for layout in ("hf", "openai")
    ]
    assert hashes[0] == hashes[1]


def test_a_manifest_that_is_none_is_a_failure_and_not_a_crash(checkpoint):
    (checkpoint.path / references.MANIFEST).write_text("{}")
    with pytest.raises(FormatError):
        references.read_manifest(checkpoint.path)
    assert outcome(checkpoint, "tensors").status == "FAIL"


def test_dequantising_notices_a_wrong_codec(checkpoint, monkeypatch):
    decode = check.mxfp4.decode
    monkeypatch.setattr(check.mxfp4, "decode", lambda b, s: -decode(b, s))
    result = outcome(checkpoint, "dequantising")
    assert result.status == "FAIL"
    assert "definition" in result.detail


def test_the_definition_of_fp4():
    expected = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values = check._e2m1(np.arange(16, dtype=np.uint8))
    assert values.tolist() == expected + [-v for v in expected]


def test_template_passes_with_the_bundled_vocabulary(tmp_path):
    checkpoint = open_checkpoint(write_tiny(tmp_path / "tiny", vocab=201088))
    result = outcome(checkpoint, "template")
    assert result.status == "PASS"
    assert "token for token" in result.detail


def test_template_passes_by_bytes_with_a_trimmed_vocabulary(checkpoint):
    result = outcome(checkpoint, "template")
    assert (result.status, "byte for byte" in result.detail) == ("PASS", True), result.detail


def test_template_fails_where_the_rendering_differs(checkpoint, monkeypatch):
    monkeypatch.setattr(check, "render", lambda conversation, tokenizer: [1, 2, 3])
    result = outcome(checkpoint, "template")
    assert result.status == "FAIL"
    assert "'question'" in result.detail


def test_template_goldens_are_what_openai_harmony_renders(tmp_path, monkeypatch):
    openai_harmony = pytest.importorskip("openai_harmony")
    from tests.harmony.conversations import to_oracle

    packed = importlib.resources.files("aperto") / "data" / "o200k_base.tiktoken.gz"
    (tmp_path / "o200k_base.tiktoken").write_bytes(gzip.decompress(packed.read_bytes()))
    monkeypatch.setitem(os.environ, "TIKTOKEN_ENCODINGS_BASE", str(tmp_path))
    encoding = openai_harmony.load_harmony_encoding("HarmonyGptOss")
    for golden in check.template_goldens():
        conversation = to_oracle(Conversation.from_dict(golden["conversation"]))
        ids = encoding.render_conversation_for_completion(
            conversation, openai_harmony.Role.ASSISTANT
        )
        assert list(ids) == golden["ids"], golden["name"]


@pytest.mark.parametrize(
    ("stated", "status", "word"),
    [
        ({}, "SKIPPED", "generation_config"),
        ({"do_sample": True, "temperature": 1.0}, "PASS", ""),
        ({"temperature": 0.6}, "FAIL", "0.6"),
        ({"do_sample": False}, "FAIL", "do_sample"),
        ({"eos_token_id": [3]}, "FAIL", "<|return|>"),
    ],
)
def test_sampling_defaults(checkpoint, stated, status, word):
    checkpoint.generation_config = stated
    result = outcome(checkpoint, "sampling defaults")
    assert result.status == status
    assert word in result.detail


@pytest.fixture
def forward(checkpoint, tmp_path):
    """The real kernels."""
    return check.loader(checkpoint, tmp_path / "cache")


def reference_case(forward, precisions=("q8", "exact")):
    ids, positions = tuple(range(40)), (0, 20, 39)
    logits = {p: Logits.of(forward(p, "", ids, positions)) for p in precisions}
    return ReferenceCase(ids, positions, logits)


def test_logits_pass_against_their_own_references(checkpoint, forward):
    references.write_references(checkpoint.path, [reference_case(forward)])
    assert references.read_references(checkpoint.path) == (reference_case(forward),)
    result = outcome(checkpoint, "logits", forward=forward)
    assert result.status == "PASS"
    assert "q8, exact" in result.detail


def test_one_different_bit_fails_and_says_how_far(checkpoint, forward):
    references.write_references(checkpoint.path, [reference_case(forward, ("q8",))])

    def nudged(*request):
        values = forward(*request)
        values[0] = np.nextafter(values[0], np.float32(100))
        return values

    result = outcome(checkpoint, "logits", forward=nudged)
    assert result.status == "FAIL"
    assert "case 0, q8: the top logits are up to" in result.detail


def test_damaged_references_are_refused(checkpoint, forward):
    case = dataclasses.replace(reference_case(forward, ("q8",)), positions=(99,))
    references.write_references(checkpoint.path, [case])
    assert outcome(checkpoint, "logits", forward=forward).status == "FAIL"


def test_instruction_sets_are_compared(checkpoint, forward):
    names = isa_names()
    if len(names) < 2:
        pytest.skip("this CPU runs the plain kernels only")
    assert outcome(checkpoint, "instruction sets", forward=forward).status == ("PASS")

    def wrong(precision, isa, ids, positions):
        return forward(precision, isa, ids, positions) + np.float32(isa == names[-1])

    result = outcome(checkpoint, "instruction sets", forward=wrong)
    assert (result.status, names[-1] in result.detail) == ("FAIL", True)


def test_companion_of_a_file_and_of_a_folder(tmp_path):
    assert references.companion(tmp_path, "x.json") == tmp_path / "x.json"
    file = tmp_path / "m.gguf"
    assert references.companion(file, "x.json") == Path(f"{file}.x.json")


def test_references_made_from_the_golden_conversations_hold(checkpoint, forward):
    prompts = check.reference_prompts(checkpoint)
    assert len(prompts) == len(check.template_goldens())
    cases = check.make_references(forward, prompts[:2], ["q8"])
    references.write_references(checkpoint.path, cases)
    assert outcome(checkpoint, "logits", forward=forward).status == "PASS"


def test_a_prompt_longer_than_a_batch_gives_the_logits_of_its_parts(forward):
    ids, positions = [i % 384 for i in range(1200)], (3, 511, 512, 1199)
    logits = forward("q8", "", ids, positions)
    assert np.array_equal(logits[:2], forward("q8", "", ids[:512], (3, 511)))
    assert not np.array_equal(logits[2], logits[3])
