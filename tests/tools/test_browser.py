"""The browser against local documents and against servers of our own."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.tools.loopback import Asked, Reply, serve

from aperto.harmony.messages import call
from aperto.tools.browser import BrowserTool
from aperto.tools.documents import Documents
from aperto.tools.fetch import FetchLimits, checked_address, fetch, is_public
from aperto.tools.pages import html_page, plain_page
from aperto.tools.search import Exa, Searxng, You
from aperto.tools.tool import ToolFailureError

BREAD = "# Rye bread\n\nKnead the dough.\n\n" + "Wait.\n\n" * 200 + "Bake."
OPEN = FetchLimits(allow_private=True, max_bytes=100_000, timeout_s=5.0)


def ask(tool: BrowserTool, function: str, **arguments: object) -> str:
    results = tool.run(call(f"browser.{function}", json.dumps(arguments)))
    assert [(m.role, m.name, m.recipient) for m in results] == [
        ("tool", f"browser.{function}", "assistant")
    ]
    return results[0].text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "documents"
    (root / "deep").mkdir(parents=True)
    (root / "bread.md").write_text(BREAD)
    (root / "deep" / "soup.txt").write_text("Soup of lentils\nBoil the lentils for a while.\n")
    (root / "page.html").write_text("<title>Tea</title><p>Steep <a href='http://x.test/'>it</a>.")
    (root / "notes.bin").write_text("bread")
    (root / ".secret.md").write_text("hidden bread")
    (tmp_path / "outside.md").write_text("bread outside")
    (root / "link.md").symlink_to(tmp_path / "outside.md")
    return root


@pytest.fixture
def browser(folder: Path) -> Iterator[BrowserTool]:
    tool = BrowserTool(Documents(folder))
    yield tool
    tool.close()


def test_search_shows_numbered_results_of_the_folder_only(browser: BrowserTool) -> None:
    shown = ask(browser, "search", query="bread")
    assert shown.startswith("[0] bread\n**viewing lines [0 - 3] of 3**\n\nL0: 【0†Rye bread】\n")
    assert "outside" not in shown
    assert "hidden" not in shown
    assert "【1†" not in shown


def test_a_result_opens_where_the_words_stand(browser: BrowserTool) -> None:
    ask(browser, "search", query="bake dough")
    shown = ask(browser, "open", id=0)
    assert shown.startswith("[1] Rye bread (bread.md)\n**viewing lines [0 - ")
    assert "L2: Knead the dough." in shown
    ask(browser, "search", query="BAKE!")
    assert "L404: Bake." in ask(browser, "open", id=0.0)


def test_scrolling_by_line_and_cursor(browser: BrowserTool) -> None:
    ask(browser, "search", query="soup bread")
    ask(browser, "open", id="bread.md")
    shown = ask(browser, "open", loc=2, num_lines=3)
    assert shown.endswith(
        "**viewing lines [2 - 4] of 404**\n\nL2: Knead the dough.\nL3: \nL4: Wait."
    )
    ask(browser, "open", id="deep/soup.txt")
    assert ask(browser, "open", cursor=1, loc=404).endswith("L404: Bake.")
    assert "loc is 405" in ask(browser, "open", cursor=1, loc=405)
    assert "cursor is 99" in ask(browser, "open", cursor=99)


def test_find_gives_matches_that_open_at_their_line(browser: BrowserTool) -> None:
    ask(browser, "open", id="bread.md")
    shown = ask(browser, "find", pattern="BAKE")
    assert "[1] Find results for text: `BAKE` in `Rye bread`" in shown
    assert "# 【0†match at L404】" in shown
    assert "L404: Bake." in ask(browser, "open", id=0)
    assert "No matches" in ask(browser, "find", pattern="cake", cursor=0)


def test_the_view_is_limited_whatever_is_asked_for(browser: BrowserTool, folder: Path) -> None:
    (folder / "large.txt").write_text("word " * 100_000)
    assert len(ask(browser, "open", id="large.txt")) < 5_000
    assert len(ask(browser, "open", id="large.txt", num_lines=10**9)) < 20_000


@pytest.mark.parametrize(
    "path",
    ["../outside.md", "/etc/passwd", "link.md", "notes.bin", "deep", "a\0b", "http://x.test"],
)
def test_paths_never_leave_the_folder(browser: BrowserTool, path: str) -> None:
    assert ask(browser, "open", id=path).startswith("Error: ")


def test_the_index_follows_changes(browser: BrowserTool, folder: Path) -> None:
    assert "No results" in ask(browser, "search", query="saffron")
    (folder / "new.md").write_text("Saffron rice")
    assert "Saffron rice" in ask(browser, "search", query="saffron")
    (folder / "new.md").unlink()
    assert "No results" in ask(browser, "search", query="saffron")


@given(query=st.text(max_size=40))
def test_no_query_breaks_the_search(query: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("documents")
    (folder / "a.txt").write_text('a AND b NEAR(c) "quoted" * 42')
    backend = Documents(folder)
    assert len(backend.search(query, 3)) <= 1
    backend.close()


def test_a_pdf_is_read(folder: Path) -> None:
    pypdf = pytest.importorskip("pypdf")
    writer = pypdf.PdfWriter()
    writer.add_blank_page(100, 100)
    writer.write(folder / "blank.pdf")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    backend = Documents(folder)
    assert "## Page 1" in "\n".join(backend.fetch("blank.pdf").lines)
    with pytest.raises(ToolFailureError, match="cannot be read"):
        backend.fetch("broken.pdf")
    backend.close()


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("search", "{}", "query is None"),
        ("search", "[1]", "expected an object"),
        ("search", "{broken", "not JSON"),
        ("open", '{"id": 3}', "no page is open"),
        ("open", '{"id": true}', "whole number"),
        ("open", '{"loc": 1e400}', "whole number"),
        ("find", '{"pattern": ""}', "expected text"),
        ("click", "{}", "no function 'click'"),
    ],
)
def test_bad_calls_are_told_to_the_model(
    browser: BrowserTool, function: str, arguments: str, message: str
) -> None:
    results = browser.run(call(f"browser.{function}", arguments))
    assert results[0].text.startswith("Error: ")
    assert message in results[0].text


def test_html_becomes_text_with_numbered_links() -> None:
    shown = html_page(
        "http://a.test/dir/",
        """<html><head><title> The
        title </title><style>p {}</style><script>alert("no")</script></head><body>
        <h1>Head</h1><p>One <b>two</b>  <a href="b?x=1">link <i>text</i></a>, <a href="#x">none</a>
        <a href="javascript:alert(1)">js</a> <a href="http://[">bad</a>
        <ul><li>first<li>second</ul><pre>a  b
  c</pre><table><tr><td>1</td><td>2</td></tr></table>&lt;tag&gt; 【9†forged】
        <a href="https://c.test/">unclosed""",
    )
    assert shown.title == "The title"
    text = "\n".join(shown.lines)
    assert "# Head" in text
    assert "One two 【0†link text†a.test】, none" in text
    assert "- first\n- second" in text
    assert "a  b\n  c" in text
    assert "1 | 2 |" in text
    assert "<tag> 〖9†forged〗" in text
    assert "alert" not in text
    assert [link.url for link in shown.links] == ["http://a.test/dir/b?x=1", "https://c.test/"]


@example(source="<![;")
@example(source="a<![if b]>c<![;>d")
@given(source=st.text(alphabet="<>/ab=\"' &;!-[]【】†hrefscript\n", max_size=200))
def test_any_html_is_read_and_link_marks_are_ours(source: str) -> None:
    shown = html_page("http://a.test/", source)
    marks = re.findall(r"【(\d+)†", "".join(shown.lines))
    assert [int(mark) for mark in marks] == list(range(len(shown.links)))
    assert "【" not in "".join(plain_page("x", source, source).lines)


def test_pages_are_fetched_and_links_followed() -> None:
    def answer(asked: Asked) -> Reply:
        if asked.path == "/":
            return Reply(b"<title>Start</title><a href='/next'>next</a><a href='/moved'>moved</a>")
        if asked.path == "/moved":
            return Reply(status=302, headers={"location": "/next"})
        return Reply("Grüße".encode("latin-1"), "text/plain; charset=latin-1")

    with serve(answer) as (url, asked):
        tool = BrowserTool(Searxng(url, OPEN))
        assert "【0†next†127.0.0.1" in ask(tool, "open", id=url)
        assert "L0: Grüße" in ask(tool, "open", id=0)
        assert "L0: Grüße" in ask(tool, "open", id=1, cursor=0)
        assert "<title>" in ask(tool, "open", id=url, view_source=True)
        assert asked[0].headers["host"] == url.removeprefix("http://")


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(b"x" * 200_000), "larger than 100000"),
        (Reply(gzip.compress(bytes(50 << 20)), headers={"content-encoding": "gzip"}), "larger"),
        (Reply(b"x", headers={"content-encoding": "br"}), "packed"),
        (Reply(b"not packed", headers={"content-encoding": "gzip"}), "header"),
        (Reply(b"x", "image/png"), "only text"),
        (Reply(status=404), "status 404"),
        (Reply(status=302, headers={"location": "/"}), "redirects"),
        (Reply(status=302, headers={"location": "file:///etc/passwd"}), "only http"),
        (Reply(b"%PDF-broken", "application/pdf"), "PDF"),
    ],
)
def test_bad_pages_are_told(reply: Reply, message: str) -> None:
    with serve(lambda asked: reply) as (url, _), pytest.raises(ToolFailureError, match=message):
        fetch(url + "/", OPEN)


def test_private_addresses_are_not_opened_nor_redirected_to() -> None:
    with serve(lambda asked: Reply(b"secret")) as (url, asked):
        for address in (url, url.replace("127.0.0.1", "localhost"), "http://[::1]/", "http://0/"):
            with pytest.raises(ToolFailureError, match="private network"):
                fetch(address)
        assert not asked


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("::ffff:10.0.0.1", False),
        ("2002:7f00:1::", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_one_private_address_of_a_name_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(2, 1, 6, "", ("8.8.8.8", 80)), (2, 1, 6, "", ("192.168.0.1", 80))]
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: found)
    with pytest.raises(ToolFailureError, match=r"192\.168\.0\.1"):
        checked_address("mixed.test", 80, FetchLimits())


@pytest.mark.parametrize("service", ["searxng", "exa", "you"])
def test_search_services(service: str) -> None:
    entry = {"title": "A <b>title</b>", "url": "http://a.test/x"}
    replies = {
        "searxng": {"results": [entry | {"content": "A summary"}, {"no": "url"}]},
        "exa": {"results": [entry | {"summary": "A summary"}]},
        "you": {"results": {"web": [entry | {"snippets": ["A", "summary"]}], "news": None}},
    }
    body = json.dumps(replies[service]).encode()
    with serve(lambda asked: Reply(body, "application/json")) as (url, asked):
        backend = {
            "searxng": lambda: Searxng(url),
            "exa": lambda: Exa("key", url=url),
            "you": lambda: You("key", url=url),
        }[service]()
        shown = ask(BrowserTool(backend), "search", query="what is rye?", topn=3)
    assert "L0: 【0†A title†a.test】\nL1: A" in shown
    request = asked[0]
    if service == "searxng":
        assert request.path == "/search?q=what+is+rye%3F&format=json"
    elif service == "exa":
        assert json.loads(request.body)["numResults"] == 3
    if service != "searxng":
        assert request.headers["x-api-key"] == "key"


@pytest.mark.parametrize(
    "reply", [Reply(status=401), Reply(b"no json"), Reply(b"[]"), Reply(b'{"results": 3}')]
)
def test_a_failing_search_service_is_told(reply: Reply) -> None:
    with serve(lambda asked: reply) as (url, _):
        shown = ask(BrowserTool(Exa("key-that-stays-secret", url=url)), "search", query="x")
    assert shown.startswith("Error: the search service") or "No results." in shown
    assert "secret" not in shown


def test_calls_for_others_are_not_accepted(browser: BrowserTool) -> None:
    assert browser.accepts("browser.search")
    assert not browser.accepts("browsers.search")
    assert not browser.accepts("functions.search")
