import io
import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from aperto.cli.markdown import REDRAW_S, MarkdownStream, finished_length, printable

TEXT = """# Rivers

Some *text* with **bold** words
and a second line.

1. first

   more of first

2. second

```python
def f():

    return 1
```

| a | b |
|---|---|
| 1 | 2 |

Done."""


def console(*, terminal: bool, height: int = 20) -> Console:
    return Console(
        file=io.StringIO(), width=60, height=height, force_terminal=terminal, color_system=None
    )


def drawn(pieces, *, terminal=False, clock=lambda: 0.0, height=20):
    out = console(terminal=terminal, height=height)
    stream = MarkdownStream(out, clock)
    for piece in pieces:
        stream.feed(piece)
    stream.close()
    return out.file.getvalue()


def cut(text, places):
    edges = [0, *sorted(p % (len(text) + 1) for p in places), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@settings(deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=30))
def test_the_screen_shows_the_same_however_the_text_arrives(places):
    assert drawn(cut(TEXT, places)) == drawn([TEXT])


BLOCKS = st.lists(
    st.sampled_from(["word", "\n", "\n\n", "```", "- item", "   indented", "# head", "~~~", " "]),
    max_size=30,
).map("".join)


@settings(deadline=None)
@given(BLOCKS, BLOCKS)
def test_finished_blocks_do_not_change_with_more_text(text, more):
    finished = finished_length(text)
    if finished:
        assert finished_length(text + more) == finished


def test_a_fence_is_never_cut():
    assert finished_length("```\na\n\nb\n\nc\n") == 0
    assert finished_length("```\na\n\nb\n```\n\nc") == len("```\na\n\nb\n```\n\n")
    assert finished_length("- a\n\n  more of a\n") == 0


def test_line_breaks_stay():
    lines = drawn(["Roses are red\nviolets are blue\n"]).splitlines()
    assert [line.rstrip() for line in lines] == ["Roses are red", "violets are blue"]


def test_one_blank_line_between_blocks():
    shown = [line.rstrip() for line in drawn([TEXT]).splitlines()]
    assert not any(a == b == "" for a, b in itertools.pairwise(shown))
    assert shown[0] and shown[-1] == "Done."


def test_control_characters_do_not_reach_the_terminal():
    assert printable("a\x1b[2Jb\x07\x9bc\r\n\td") == "a[2Jbc\n\td"
    assert "\x1b]" not in drawn(["x \x1b]0;title\x07 y"])


def test_redraws_are_limited_in_time():
    now = [0.0]

    def redraws(step):
        now[0] = 0.0
        out = console(terminal=True)
        stream = MarkdownStream(out, lambda: now[0])
        count = 0
        for _ in range(50):
            before = out.file.tell()
            stream.feed("x")
            count += out.file.tell() > before
            now[0] += step
        stream.close()
        return count

    assert redraws(step=0.0) == 1
    assert redraws(step=REDRAW_S * 1.01) == 50
    assert redraws(step=REDRAW_S / 10) <= 6


@pytest.mark.parametrize("height", [5, 12])
def test_an_unfinished_block_is_never_taller_than_the_screen(height):
    out = console(terminal=True, height=height)
    clock = iter(range(10_000))
    stream = MarkdownStream(out, lambda: float(next(clock)))
    stream.feed("```\n")
    for index in range(40):
        start = out.file.tell()
        stream.feed(f"line {index}\n")
        assert out.file.getvalue()[start:].count("\n") < height
    stream.close()
    assert all(f"line {index}" in out.file.getvalue() for index in range(40))


def test_links_show_where_they_lead():
    assert "https://example.org" in drawn(["[text](https://example.org)"])
