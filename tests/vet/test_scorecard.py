"""Scorecards: what is counted, and what is said beside published figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.vet.made import first, joined, rows

from aperto.errors import EvidenceError, UsageError
from aperto.vet.published import Figure, figures_of, published, read_figures
from aperto.vet.reading import read_beside
from aperto.vet.scorecard import make_scorecard, markdown
from aperto.vet.stats import mean_estimate


def figure(value: float, n: int | None = 198, **fields: object) -> Figure:
    made = {
        "model": "o4-mini",
        "effort": "high",
        "suite": "gpqa_diamond",
        "tools": "none",
        "unit": "share",
        "source": "card",
        "harness": "internal",
    }
    return Figure(value=value, num_items=n, **{**made, **fields})


def gpqa(share: float, effort: str = "high", **fields: object):
    return rows("gpqa_diamond", "model", first(share, 198), items=198, effort=effort, **fields)


@pytest.mark.parametrize(
    ("share", "standing"), [(0.80, "within noise of"), (0.5, "below"), (0.97, "above")]
)
def test_readings_follow_the_noise_of_both_sides(share: float, standing: str):
    reading = read_beside(
        mean_estimate([1.0] * round(198 * share) + [0.0] * round(198 * (1 - share))), figure(0.814)
    )
    assert reading.standing == standing and reading.text.startswith(standing)
    # Two shares of 198 questions each: half width 1.96 sqrt(2 * 0.81 * 0.19 / 198) near 0.08.
    assert 0.05 < reading.half_width < 0.1


def test_readings_name_model_effort_and_points():
    text = read_beside(mean_estimate([1.0] * 50 + [0.0] * 50), figure(0.814)).text
    assert "o4-mini (high) (81.4)" in text and "31.4 points" in text


def test_all_right_is_not_without_noise():
    reading = read_beside(mean_estimate([1.0] * 10), figure(0.95, None))
    assert reading.standing == "within noise of" and reading.half_width > 0.1


def test_a_card_counts_what_went_wrong():
    made = gpqa(0.8, output_tokens=100)
    made[0] = made[0].model_copy(update={"truncated": True, "repairs": 2, "output_tokens": 1100})
    made[1] = made[1].model_copy(update={"error": "lost", "label": None})
    card = make_scorecard(made, model="m", arm="model", figures=(figure(0.814),))
    (line,) = card.lines
    assert line.num_answers == 198 and line.mishaps.truncated == 1 / 198
    assert line.mishaps.failed == line.mishaps.repaired == 1 / 198
    assert line.tokens is not None and line.tokens.median == 100
    assert line.tokens.mean == pytest.approx(100 + 1000 / 198)
    assert line.reading == "within noise of o4-mini (high) at 81.4 (-1.6)"


def test_only_like_is_set_beside_like():
    figures = (
        figure(0.814),
        figure(0.7, effort="low"),
        figure(0.6, tools="tools"),
        figure(0.5, model="DeepSeek-R1", effort=None),
        figure(2700, unit="elo"),
    )
    (line,) = make_scorecard(gpqa(0.8), model="m", arm="model", figures=figures).lines
    assert [f.name for f, _ in line.beside] == ["o4-mini (high)", "DeepSeek-R1"]


def test_the_curve_goes_from_little_effort_to_much():
    made = joined(
        gpqa(0.8, "high", output_tokens=900),
        gpqa(0.5, "low", output_tokens=100),
        gpqa(0.6, "medium", output_tokens=300),
    )
    card = make_scorecard(made, model="m", arm="model")
    curve = card.curve("gpqa_diamond")
    assert [effort for effort, _, _ in curve] == ["low", "medium", "high"]
    assert [tokens for _, tokens, _ in curve] == [100, 300, 900]


def test_a_card_without_published_figures_gives_its_interval():
    made = rows("own", "model", first(0.5), items=100)
    (line,) = make_scorecard(made, model="m", arm="model").lines
    assert line.reading.startswith("50.0, between 4") and line.tokens is None


def test_cards_become_json():
    card = make_scorecard(
        gpqa(0.8), model="m", arm="model", not_run={"hle": "data unavailable"}, manifest={"a": 1}
    )
    plain = json.loads(json.dumps(card.to_json(), allow_nan=False))
    assert plain["schema"] == "aperto.scorecard/1" and plain["not_run"] == {
        "hle": "data unavailable"
    }
    assert plain["lines"][0]["score"]["num_items"] == 198


def test_cards_become_markdown():
    figures = (figure(0.814), figure(0.3, model="small"), figure(0.999, model="large"))
    card = make_scorecard(
        gpqa(0.8), model="m", arm="model", figures=figures, not_run={"hle": "data unavailable"}
    )
    text = markdown(card)
    assert text.startswith("# m\n") and "| gpqa_diamond | high | 79.8 |" in text
    assert "below large (high) at 99.9 (-20.1); above small (high) at 30.0 (+49.8) |" in text
    assert text.endswith("- hle: not run: data unavailable\n")


def test_a_single_question_has_no_standard_error():
    card = make_scorecard(rows("own", "m", first(1.0), items=1), model="m", arm="m")
    plain = json.loads(json.dumps(card.to_json(), allow_nan=False))
    score = plain["lines"][0]["score"]
    assert score["se"] is None and score["lower"] < 0.3


def test_empty_and_doubled_rows_are_refused():
    with pytest.raises(UsageError, match="no rows of arm"):
        make_scorecard(gpqa(0.8), model="m", arm="other")
    with pytest.raises(EvidenceError, match="expected one"):
        make_scorecard([*gpqa(0.8), gpqa(0.8)[0]], model="m", arm="model")


# The published figures that come with the package


def value(model: str, suite: str, effort: str | None, tools: str | None, source: str) -> float:
    (found,) = [
        one.value
        for one in figures_of(suite)
        if (one.model, one.effort, one.tools) == (model, effort, tools) and source in one.source
    ]
    return found


def test_figures_are_those_of_their_sources():
    assert value("gpt-oss-20b", "aime2025", "high", "none", "tables 3") == pytest.approx(0.917)
    assert value("gpt-oss-20b", "aime2025", "high", "none", "vllm") == pytest.approx(0.858)
    assert value("gpt-oss-120b", "mmlu", "low", None, "tables 3") == pytest.approx(0.859)
    assert value("o4-mini", "gpqa_diamond", "high", "none", "figures 1") == pytest.approx(0.814)
    assert value("o3", "codeforces", "high", "tools", "figures 1") == 2706
    assert value("DeepSeek-R1", "gpqa_diamond", None, "none", "DeepSeek-R1") == pytest.approx(0.715)
    assert value("gpt-oss-20b", "hierarchy/system/hijack", None, None, "card") == pytest.approx(
        0.639
    )
    assert value("median expert", "bio/protocolqa", None, None, "2508") == pytest.approx(0.42)


def test_every_figure_has_source_harness_and_a_value_that_can_be():
    figures = published()
    assert len(figures) > 300
    for one in figures:
        assert one.source and one.harness
        assert 0 <= one.value <= 1 if one.unit == "share" else 1000 < one.value < 3000
    models = {one.model for one in figures}
    assert {"o3", "o4-mini", "o3-mini", "DeepSeek-R1-0528", "gpt-oss-20b"} <= models


def test_no_figure_is_given_twice_by_one_source():
    keys = [(f.suite, f.model, f.effort, f.tools, f.source) for f in published()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("a = ", "not TOML"),
        ('[[tables]]\nsuite = "a"', "table 1"),
        (
            '[sources.s]\ntitle="t"\nharness="h"\n[[tables]]\nsource="s"\nsuite="a"\nnn=1\nvalues={}',
            "nn",
        ),
    ],
)
def test_damaged_figures_are_named(tmp_path: Path, text: str, match: str):
    path = tmp_path / "figures.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=match):
        read_figures(path)
