"""Answers taken out of final texts: letters, numbers, code; None where there is none.

A text that names no answer is not given one: a word that begins with a capital is no letter.
"""

from __future__ import annotations

import ast
import re

_MARKUP = re.compile(r"[*_`$]|\\(?:boxed|text|textbf|mathrm|mathbf)\b")
_LEAD = r"(?:answer|option|choice|antwort|respuesta|réponse|risposta|resposta|答案|回答|정답|답)"
_LAST_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?![\w])")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_FENCE = re.compile(r"```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:\n[ \t]*```|\Z)", re.DOTALL)


def letter(text: str, letters: str = "ABCD") -> str | None:
    """The option that a text chooses: the last one it calls its answer, else a line of its own.

    Args:
        text: the final text.
        letters: options there are, as capitals.
    """
    plain = _MARKUP.sub("", text)
    option = rf"(?:[({{\[]\s*)*([{letters}])(?![\w'’])(?:\s*[)}}\]])*"
    # After `answer`, a lower-case `a` is more often the article than the option.
    named = rf"(?i:{_LEAD})(?i:\s+(?:is|ist|es|est|è|é))?\s*[:：]?\s*(?i:option\s*)?{option}"
    found = [match for match in re.finditer(named, plain) if not _is_article(match, plain)]
    if found:
        return found[-1].group(1)
    alone = re.findall(rf"(?m)^\s*{option}\s*[.:]?\s*$", plain)
    if alone:
        return str(alone[-1])
    opening = re.match(rf"\s*(?:\(([{letters}])\)|([{letters}])[).:])\s", plain)
    return (opening.group(1) or opening.group(2)) if opening else None


def boxed(text: str) -> str | None:
    r"""Content of the last ``\boxed{…}`` of a text, braces balanced."""
    found = None
    for match in _BOXED.finditer(text):
        depth, end = 1, match.end()
        while end < len(text) and depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        if not depth:
            found = text[match.end() : end - 1]
    return found


def whole_number(text: str) -> int | None:
    """The whole number a text gives: in its last box, else the last one in it."""
    inner = boxed(text)
    numbers = _LAST_NUMBER.findall(inner if inner is not None else text)
    if not numbers:
        return None
    value = float(numbers[-1].replace(",", ""))
    return int(value) if value.is_integer() else None


def python_code(text: str, name: str) -> str | None:
    """The Python that a text gives for a function: the last block that defines it.

    Without such a block the last block there is; without any, the text itself if it is Python.
    """
    blocks = [code for lang, code in _FENCE.findall(text) if lang.lower() in ("", "py", "python")]
    defining = [code for code in blocks if re.search(rf"\bdef\s+{re.escape(name)}\b", code)]
    if defining or blocks:
        return str((defining or blocks)[-1])
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        is_body = text.startswith((" ", "\t")) and _parses("def _():\n" + text)
        return text if is_body else None
    return text if text.strip() else None


def _parses(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError):
        return False
    return True


def _is_article(match: re.Match[str], text: str) -> bool:
    """Whether an `A` opens a phrase: 'The answer is A good one'."""
    rest = text[match.end() :]
    return match.group(1) == "A" and bool(re.match(r"[ \t]+[a-z]", rest))
