"""What a trace of the embedded model holds, and that page and tables say the same."""

from __future__ import annotations

import html
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

import aperto
from aperto.errors import MissingExtraError
from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.harmony import Role, from_chat, render
from aperto.harmony.messages import Conversation, Message
from aperto.trace import Trace, record, write_page, write_tables
from aperto.trace.page import _pooled
from aperto.trace.record import classes_of


@pytest.fixture(scope="module")
def traced() -> Trace:
    with aperto.load("nano", context=512) as model:
        conversation = from_chat([{"role": "user", "content": "Bake <b>bread</b>"}])
        prompt = render(conversation, model.tokenizer)
        answer = "<|channel|>analysis<|message|>flour & water<|end|>"
        ids = [*prompt, *_ids(model.tokenizer, answer)]
        checkpoint = open_checkpoint(resolve_model("nano"))
        return record(model.engine, checkpoint, model.tokenizer, ids, len(prompt))


def _ids(tokenizer: aperto.tokenizer.Tokenizer, text: str) -> list[int]:
    ids = []
    for part in re.split(r"(<\|\w+\|>)", text):
        special = tokenizer.special.get(part)
        ids += tokenizer.encode(part) if special is None else [special]
    return ids


def test_every_token_has_its_class(traced: Trace) -> None:
    found = dict.fromkeys(traced.classes)
    assert list(found) == ["header", "system", "user", "assistant/analysis"]
    said = "".join(
        t for t, c in zip(traced.texts, traced.classes, strict=True) if c == "assistant/analysis"
    )
    assert said == "flour & water<|end|>"


def test_a_header_with_a_recipient_and_one_without_a_channel() -> None:
    tokenizer = aperto.tokenizer.Tokenizer.bundled()
    call = Message(Role.ASSISTANT, "{}", channel="commentary", recipient="functions.bake")
    ids = render(Conversation((call,)), tokenizer, next_role=None)
    assert set(classes_of(tokenizer, ids)) == {"header", "assistant/commentary"}
    assert set(classes_of(tokenizer, tokenizer.encode("no harmony"))) == {"header"}


def test_the_last_layer_of_the_lens_is_what_the_model_says(traced: Trace) -> None:
    with aperto.load("nano", context=512, precision="exact") as model:
        logits = model.trace(traced.ids, ["logits"])["logits"]
        checkpoint = open_checkpoint(resolve_model("nano"))
        exact = record(model.engine, checkpoint, model.tokenizer, traced.ids, 1)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    last = exact.layers[-1]
    np.testing.assert_array_equal(last.lens_ids, logits.argmax(axis=1))
    # exp turns the absolute error of a logit, some hundred float32 ulps of its size, into a
    # relative one of the probability.
    error = 200 * np.finfo(np.float32).eps * np.abs(logits).max()
    np.testing.assert_allclose(last.lens_probs, shares.max(axis=1), rtol=error)
    np.testing.assert_allclose(
        exact.logprobs[1:],
        np.log(shares[np.arange(len(shares) - 1), traced.ids[1:]]),
        rtol=0,
        atol=error,
    )


def test_choices_are_counted(traced: Trace) -> None:
    for layer, shape in enumerate(traced.config.layers):
        for shares in traced.routing(layer).values():
            assert shares.shape == (shape.num_experts,)
            assert shares.sum() == pytest.approx(1)
        counts = traced.together(layer)
        assert (counts == counts.T).all()
        assert counts.trace() == shape.experts_per_token * len(traced.ids)
        attention = traced.layers[layer].attention.sum(axis=1)
        total = attention + traced.layers[layer].sinks.mean(axis=1)
        # Each head's shares sum to 1 within an ulp for each of the tokens it sums.
        np.testing.assert_allclose(total, 1, atol=len(traced.ids) * 2**-23)


class Reader(HTMLParser):
    """Collects what a page would load, and how many figures it has."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]


def test_the_page_holds_all_and_loads_nothing(traced: Trace, tmp_path: Path) -> None:
    path = tmp_path / "index.html"
    write_page(traced, path, "nano: <bread>")
    text = path.read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(text)
    num = len(traced.layers)
    assert reader.tags.count("figure") == 3 * num + 1 and "script" not in reader.tags
    assert len(reader.sources) == num
    assert all(source.startswith("data:image/png;base64,") for source in reader.sources)
    assert "<title>nano: &lt;bread&gt;</title>" in text and "<b>" not in text
    for wanted in ("Tokens and their entropy", "Sinks", "Logit lens"):
        assert wanted in text
    assert all(f">{html.escape(token)}<" in text for token in traced.texts)
    assert len(text) < 1_000_000


def test_long_texts_are_pooled_by_the_largest() -> None:
    attention = np.zeros((521, 521), np.float32)
    attention[520, 3] = 0.25
    pooled = _pooled(attention)
    assert pooled.shape == (174, 174)
    assert np.argwhere(pooled).tolist() == [[173, 1]] and pooled.max() == 0.5


def test_tables_say_what_the_trace_says(traced: Trace, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    paths = write_tables(traced, tmp_path)
    tokens, experts, lens = (parquet.read_table(path).to_pydict() for path in paths)
    assert tokens["text"] == list(traced.texts) and tokens["class"] == list(traced.classes)
    assert sum(tokens["generated"]) == len(traced.ids) - traced.num_prompt
    per_token = sum(layer.experts_per_token for layer in traced.config.layers)
    assert len(experts["expert"]) == per_token * len(traced.ids)
    assert experts["expert"][:2] == traced.layers[0].chosen[0].tolist()
    assert lens["text"] == [text for layer in traced.lens_texts for text in layer]


def test_without_pyarrow_the_extra_is_named(
    traced: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'aperto\[trace\]'"):
        write_tables(traced, tmp_path)
