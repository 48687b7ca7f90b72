"""A run's log as figures."""

import json

import pytest

from aperto.adapt.figures import PAGE, PNG, smoothed, write_figures
from aperto.errors import DataError


@pytest.fixture
def run(tmp_path):
    lines = [
        {"step": n, "loss": 5 / n, "tokens": 100, "learning_rate": 1e-3 / n, "tokens_per_s": 50.0}
        for n in range(1, 31)
    ]
    lines.insert(15, {"step": 15, "eval_loss": 0.5})
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "run.json").write_text(json.dumps({"base": "<nano>", "rank": 4}))
    return tmp_path


def test_draws_a_picture_and_a_page_of_its_own(run):
    assert write_figures(run) == (run / PNG, run / PAGE)
    assert (run / PNG).read_bytes().startswith(b"\x89PNG")
    page = (run / PAGE).read_text()
    assert "&lt;nano&gt;" in page and "<nano>" not in page
    for text in ("learning rate", "tokens/s", "held-out rows", "loss of held-out rows"):
        assert text in page
    assert page.count("<svg") == 2 and "http-equiv" not in page and "<script" not in page
    first = (run / PAGE).read_bytes(), (run / PNG).read_bytes()
    write_figures(run)
    assert first == ((run / PAGE).read_bytes(), (run / PNG).read_bytes())


def test_nothing_to_draw_and_nothing_to_read(run):
    (run / "log.jsonl").write_text("")
    assert write_figures(run) is None
    (run / "log.jsonl").write_text("{\n")
    with pytest.raises(DataError, match="expected one JSON object a line"):
        write_figures(run)


def test_a_running_mean_of_equal_values_is_that_value():
    assert smoothed([3.0] * 50) == pytest.approx([3.0] * 50, rel=1e-14)
    assert smoothed([0.0, 1.0]) == [0.0, 1.0]
    # Of 20 values the weight is a half: (1 + 0) / (1 + 1/2), then (1 + 1/1.5 ...) and so on.
    assert smoothed([0.0, 1.0] + [1.0] * 18)[1:3] == pytest.approx([1 / 1.5, 1.5 / 1.75])
