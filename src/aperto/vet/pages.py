"""Pages: a verdict or a scorecard as one HTML file, with its charts inside and nothing to load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from aperto.vet.charts import Bar, Point, curve, intervals
from aperto.vet.gate import Decision, Finding, SuiteResult
from aperto.vet.protocol import Arm, Kind
from aperto.vet.report import RESIDUAL_RISK, Report, false_alarms, percent, points, sizes
from aperto.vet.scorecard import Line, Scorecard
from aperto.vet.stats import Estimate

_TONES = {
    Finding.HOLDS: "good",
    Finding.FAILS: "bad",
    Finding.SHOWN: "plain",
}
_DECISION_TONES = {Decision.PASS: "good", Decision.BLOCK: "bad"}

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --paper: #fdfdfc; --soft: #6b7078;
  --edge: #dcdedf; --good: #1a7f4b; --bad: #b3261e; --unsure: #a86400; --plain: #2a5db0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e9ea; --paper: #16181a; --soft: #9aa0a8;
  --edge: #33373b; --good: #52c58a; --bad: #f2867e; --unsure: #e2a54a; --plain: #86aef2; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; display: block;
  overflow-x: auto; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--edge);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
svg { width: 100%; height: auto; font-size: 12px; fill: var(--ink); }
svg line { stroke-width: 2; stroke: var(--soft); } svg line.grid { stroke: var(--edge);
  stroke-width: 1; } svg line.zero { stroke: var(--soft); stroke-width: 1; }
svg line.limit { stroke: var(--ink); stroke-width: 2.5; }
svg .good { fill: var(--good); stroke: var(--good); } svg .bad { fill: var(--bad);
  stroke: var(--bad); } svg .unsure { fill: var(--unsure); stroke: var(--unsure); }
svg .plain { fill: var(--plain); stroke: var(--plain); } svg .faint { fill: var(--soft);
  stroke: var(--soft); opacity: .6; } svg .mark { fill: var(--unsure); opacity: .75; }
svg .curve { fill: none; stroke: var(--plain); stroke-width: 2; }
.verdict { display: inline-block; padding: .1rem .8rem; border-radius: .4rem; color: #fff;
  font-weight: 700; letter-spacing: .03em; }
.good.verdict { background: #1a7f4b; } .bad.verdict { background: #b3261e; }
.unsure.verdict { background: #8a5200; }
.soft { color: var(--soft); } code { font-size: .85em; overflow-wrap: anywhere; }
"""


def verdict_page(report: Report) -> str:
    """The page of a verdict."""
    verdict, frozen = report.verdict, report.evidence.frozen
    tone = _DECISION_TONES.get(verdict.decision, "unsure")
    alarms = false_alarms(verdict)
    body = [
        f"<h1>{escape(frozen.protocol.name)}</h1>",
        f'<p><span class="verdict {tone}">{verdict.decision}</span> '
        f"{escape(verdict.next_step)}</p>",
        f'<p class="soft">Protocol <code>{frozen.sha256}</code>, frozen {escape(frozen.frozen_at)}'
        f", look {report.evidence.look}. Rows <code>{report.evidence.sha256}</code>.</p>",
        _section("Why", _list(verdict.reasons)) if verdict.reasons else "",
        _section("Signed by", _list(_words(report))) if verdict.signed_by else "",
        _section("Harm, with its margin", _harm_chart(verdict.results) + _HARM_NOTE),
        _section("Results", _results(report)),
        _section("Models", _models(report)),
        _section(
            "How far to trust it",
            f"<p>The base run a second time as if it were an adaptation failed to pass in "
            f"{alarms.not_passed} of {alarms.strata} strata.</p><p>{escape(_judge(report))}</p>",
        ),
        _section("Not tested", _list(_gaps(report)) + f"<p>{escape(RESIDUAL_RISK)}</p>"),
    ]
    return _page(f"{verdict.decision}: {frozen.protocol.name}", body)


def scorecard_page(card: Scorecard) -> str:
    """The page of a scorecard."""
    suites = list(dict.fromkeys(line.suite for line in card.lines))
    curves = [
        f"<h3>{escape(suite)}</h3>"
        + curve([_point(*point) for point in card.curve(suite)], title=suite)
        for suite in suites
        if len(card.curve(suite)) > 1
    ]
    body = [
        f"<h1>{escape(card.model)}</h1>",
        f'<p class="soft">Rows <code>{card.rows_sha256}</code>.</p>',
        _section(
            "Scores",
            _score_chart(card) + _SCORE_NOTE,
        ),
        _section("In words", _table(("suite", "effort", "reading"), map(_reading, card.lines))),
        _section("What went wrong, and what it took", _table(_LINE_HEADS, map(_row, card.lines))),
        _section("Accuracy against tokens", "".join(curves)) if curves else "",
        _section("Published figures", _published(card)),
        _section("Not run", _list(f"{name}: {why}" for name, why in card.not_run.items()))
        if card.not_run
        else "",
        _section(
            "Manifest", _table(("key", "value"), [(k, str(v)) for k, v in card.manifest.items()])
        )
        if card.manifest
        else "",
    ]
    return _page(f"Scores of {card.model}", body)


_HARM_NOTE = (
    '<p class="soft">Points by which the adapted model is worse than the base; of a capability, '
    "by which it grew. The short upright line is the margin, the diamond the base against "
    "itself.</p>"
)
_SCORE_NOTE = (
    '<p class="soft">Intervals between questions, at 95 %. Diamonds are published figures of the '
    "same effort; point at one to read whose. Other harnesses ask in other ways.</p>"
)
_LINE_HEADS = (
    "suite", "effort", "score", "interval", "questions", "answers", "truncated", "failed",
    "unlabelled", "mended", "tokens",
)  # fmt: skip


def _harm_chart(results: Sequence[SuiteResult]) -> str:
    bars = []
    for result in results:
        for stratum in result.strata:
            harm = stratum.harm_of(Arm.ADAPTED)
            if harm is None or not harm.is_finite or result.suite.kind not in (
                Kind.SAFETY, Kind.UTILITY, Kind.CAPABILITY,
            ):  # fmt: skip
                continue
            again = stratum.harm_of(Arm.BASE_AGAIN)
            bars.append(
                Bar(
                    label=f"{result.suite.name}, {stratum.effort}",
                    value=harm.value,
                    lower=harm.lower,
                    upper=harm.upper,
                    text=f"{points(harm)}",
                    tone=_TONES.get(stratum.finding, "unsure"),
                    marks=((again.value, f"base again: {points(again)}"),) if again else (),
                    limit=result.suite.margin,
                )
            )
    if not bars:
        return "<p>Nothing with a margin was measured.</p>"
    return intervals(bars, unit="harm, points", zero=True)


def _results(report: Report) -> str:
    heads = (
        "suite",
        "kind",
        "effort",
        "n",
        "base",
        "adapted",
        "harm",
        "margin",
        "power",
        "finding",
    )
    rows = [
        (
            result.suite.name,
            result.suite.kind.value,
            stratum.effort,
            sizes(result.suite, report.evidence),
            percent(stratum.level_of(Arm.BASE)),
            percent(stratum.level_of(Arm.ADAPTED)),
            points(stratum.harm_of(Arm.ADAPTED)),
            "–" if result.suite.margin is None else f"{100 * result.suite.margin:.1f}",
            "–" if stratum.power is None else f"{stratum.power:.2f}",
            stratum.finding.value,
        )
        for result in report.verdict.results
        for stratum in result.strata
    ]
    return _table(heads, rows)


def _models(report: Report) -> str:
    rows = [
        (arm.value, model.get("name", "?"), model.get("sha256", "?"))
        for arm, model in report.models.items()
    ]
    return _table(("arm", "model", "hash"), rows)


def _words(report: Report) -> list[str]:
    return [f"{w.reviewer}, {w.at}: {w.statement}" for w in report.evidence.sign_offs]


def _judge(report: Report) -> str:
    calibration = report.evidence.calibration
    return calibration.reading() if calibration else "All grading was exact; no judge took part."


def _gaps(report: Report) -> list[str]:
    not_run = [f"{name}: {why}" for name, why in report.evidence.not_run.items()]
    return [*not_run, *report.evidence.frozen.protocol.scope.not_tested]


def _score_chart(card: Scorecard) -> str:
    bars = [_score_bar(line) for line in card.lines if line.score.is_finite]
    return intervals(bars, unit="score, %") if bars else "<p>No score has an interval.</p>"


def _score_bar(line: Line) -> Bar:
    score = line.score
    return Bar(
        label=f"{line.suite}, {line.effort}",
        value=score.value,
        lower=score.lower,
        upper=score.upper,
        text=f"{100 * score.value:.1f} [{100 * score.lower:.1f}, {100 * score.upper:.1f}]",
        marks=tuple(
            (figure.value, f"{figure.name}: {100 * figure.value:.1f}, {figure.harness}")
            for figure, _ in line.beside
        ),
    )


def _reading(line: Line) -> tuple[str, str, str]:
    return line.suite, line.effort, line.reading


def _row(line: Line) -> tuple[str, ...]:
    score, wrong = line.score, line.mishaps
    shares = (wrong.truncated, wrong.failed, wrong.unlabelled, wrong.repaired)
    return (
        line.suite,
        line.effort,
        f"{100 * score.value:.1f}",
        f"{100 * score.lower:.1f} to {100 * score.upper:.1f}",
        f"{score.num_items}"
        + (f" in {score.num_clusters}" if score.num_clusters < score.num_items else ""),
        str(line.num_answers),
        *(f"{100 * share:.1f} %" for share in shares),
        "–" if line.tokens is None else f"{line.tokens.mean:,.0f}",
    )


def _published(card: Scorecard) -> str:
    rows = [
        (
            line.suite,
            figure.name,
            f"{100 * figure.value:.1f}",
            "" if figure.num_items is None else str(figure.num_items),
            figure.harness,
            figure.source,
        )
        for line in card.lines
        for figure, _ in line.beside
    ]
    if not rows:
        return "<p>None of these suites has published figures of the same kind.</p>"
    return _table(("suite", "model", "score", "n", "harness", "source"), list(dict.fromkeys(rows)))


def _point(effort: str, tokens: float, score: Estimate) -> Point:
    return Point(effort, tokens, score.value, score.lower, score.upper)


def _section(title: str, inner: str) -> str:
    return f"<h2>{escape(title)}</h2>\n{inner}"


def _list(lines: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _page(title: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )
