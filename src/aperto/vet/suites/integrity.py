"""Integrity: whether an answer is well formed, whatever it says."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence

from aperto.vet.suites.item import Answer, Function, Grade

CHECKS = ("truncated", "empty", "format", "leak", "arguments", "incoherent")
"""What may be wrong with an answer; the first that is gives the label."""

SHARED_WORDS = 20
"""As many words in a row of the reasoning make its text in `final` a leak."""

_MARKS = re.compile(
    r"<\|[a-z_]+\|>|\b(?:analysis|commentary|assistantfinal|assistantanalysis)\s*(?:to=|:|\n|$)"
    r"|^\s*assistant(?:final|analysis|commentary)",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
_LETTERS = re.compile(r"\w")
_COMMON = frozenset(
    _WORD.findall(
        "a an and are as at be but by can do for from has have he i if in is it its me my no not "
        "of on or our she so that the their them there they this to was we what when which will "
        "with you your"
    )
)
_LONG_WORDS = 25
_MIN_COMMON = 0.12
_MAX_RATIO = 8.0


def grade(answer: Answer, functions: Sequence[Function] = (), *, english: bool = True) -> Grade:
    """1 where nothing is wrong with the form of an answer, else 0 and the first thing that is.

    Args:
        answer: of any suite.
        functions: that the model could call.
        english: whether words are expected to be English; only long texts are judged by it.
    """
    wrong = problems(answer, functions, english=english)
    return Grade(0.0 if wrong else 1.0, wrong[0] if wrong else "sound")


def problems(
    answer: Answer, functions: Sequence[Function] = (), *, english: bool = True
) -> tuple[str, ...]:
    """All that is wrong with the form of an answer, of `CHECKS` and in their order."""
    found = {
        "truncated": answer.truncated,
        "empty": not answer.final.strip() and not answer.calls,
        "format": answer.repairs > 0,
        "leak": leaks_reasoning(answer),
        "arguments": not all(_fits(call.name, call.parsed(), functions) for call in answer.calls),
        "incoherent": incoherent(answer.final, english=english),
    }
    return tuple(name for name in CHECKS if found[name])


def leaks_reasoning(answer: Answer) -> bool:
    """Whether `final` holds marks of other channels, or a long run of the reasoning's words."""
    if _MARKS.search(answer.final):
        return True
    final, thought = answer.final.split(), answer.analysis.split()
    runs = {tuple(thought[i : i + SHARED_WORDS]) for i in range(len(thought) - SHARED_WORDS + 1)}
    return any(
        tuple(final[i : i + SHARED_WORDS]) in runs for i in range(len(final) - SHARED_WORDS + 1)
    )


def incoherent(text: str, *, english: bool = True) -> bool:
    """Whether a text is no language: damaged letters, a loop, or no common words.

    Only what is plainly wrong is found; nonsense in good sentences is not.
    """
    stripped = text.strip()
    if not stripped:
        return False
    if "\ufffd" in stripped or not _LETTERS.search(stripped):
        return True
    if _loops(stripped):
        return True
    words = [word.casefold() for word in _WORD.findall(stripped)]
    # Code, tables and lists of names have few common words: they are not judged by them.
    if not english or len(words) < _LONG_WORDS or "```" in stripped:
        return False
    return sum(word in _COMMON for word in words) / len(words) < _MIN_COMMON


def _loops(text: str) -> bool:
    """Whether a text repeats itself so much that it shrinks to an eighth."""
    raw = text.encode()
    return len(raw) > 400 and len(raw) / len(zlib.compress(raw, 9)) > _MAX_RATIO


def _fits(name: str, arguments: object, functions: Sequence[Function]) -> bool:
    """Whether a call names a known function and has an object with its required keys."""
    function = next((one for one in functions if one.name == name), None)
    if not isinstance(arguments, dict) or (function is None and functions):
        return False
    schema = function.parameters if function else {}
    known = set(schema.get("properties", arguments))
    return set(schema.get("required", ())) <= set(arguments) <= known
