"""The web page in a browser, against a server that replays scripted answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.server.chromium import CTRL, PROGRAM, SHIFT, Chromium, Page
from tests.server.fake_chat import (
    BREAK,
    IDLE,
    FakeChat,
    answer,
    calling,
    drawn,
    ending,
    event,
    item,
    prefill,
    running,
    saying,
    thinking,
    wait_until,
)

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium, which is not installed")
long = pytest.mark.long

ENDED = (
    "document.querySelector('.answer:last-child .bar button')"
    " && document.getElementById('send').title.startsWith('Send')"
)
RICH = (Path(__file__).parent / "answer.md").read_text()
HOSTILE = """\
<script>window.harmed = 1</script> <img src="https://outside.test/a.png" onerror="window.harmed=1">

![pixel](https://outside.test/b.png) [link](javascript:window.harmed=1) <b onclick="x()">b</b>
[data](data:text/html,x) [fine](https://outside.test/page) <style>body{display:none}</style>

<iframe src="https://outside.test"></iframe>

$\\href{javascript:window.harmed=1}{x}$ $\\includegraphics{https://outside.test/c.png}$
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def served() -> Iterator[FakeChat]:
    fake = FakeChat()
    with running(fake.app()) as url:
        fake.url = url
        yield fake


@pytest.fixture
def fake(served: FakeChat) -> Iterator[FakeChat]:
    served.asked.clear()
    served.delay_s = 0.0
    served.key = ""
    served.num_closed = 0
    served.will(answer("Hello."))
    yield served
    served.release()


@pytest.fixture
def page(browser: Chromium, fake: FakeChat) -> Iterator[Page]:
    tab = browser.page()
    tab.open(fake.url)
    tab.wait("document.getElementById('model').options.length === 2")
    yield tab
    tab.close()


def ask(page: Page, text: str) -> None:
    """Send a message and wait until its answer has ended."""
    before = page.count(".answer")
    page.say(text)
    page.wait(f"document.querySelectorAll('.answer').length > {before} && {ENDED}")


def contents(body: dict[str, Any]) -> list[str]:
    return [entry["content"] for entry in body["input"]]


def switch(page: Page, name: str) -> None:
    """Change a check box of the settings."""
    page.click("[aria-label=Settings]")
    page.click(f"#set-{name}")
    page.click("[aria-label='Close settings']")


def test_a_question_is_answered_without_any_outside_request(page: Page, fake: FakeChat) -> None:
    fake.will(answer("It is **391**, see `17 * 23`.", "17 * 20 is 340."))
    ask(page, "What is 17 * 23?")
    assert page.text(".said") == "What is 17 * 23?"
    assert page.text(".steps > .prose") == "It is 391, see 17 * 23."
    assert page.text(".reasoning summary") == "Thought for a moment"
    assert "gpt-oss-20b · 42 tokens · " in page.text(".facts")
    assert page.text("#context-text") == "129 of 131,072 tokens"
    assert page.text("#conversations .item") == "What is 17 * 23?"
    body = fake.asked[0]
    assert contents(body) == ["What is 17 * 23?"]
    assert (body["model"], body["reasoning"]) == ("gpt-oss-20b", {"effort": "medium"})
    assert (body["store"], body["stream"]) == (False, True)
    requests = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    assert len(requests) > 10
    assert [url for url in requests if not url.startswith(fake.url)] == []
    assert page.complaints() == []


# --- text


@long
def test_markdown_becomes_elements(page: Page, fake: FakeChat) -> None:
    fake.will(answer(RICH))
    ask(page, "Explain.")
    page.wait("document.querySelector('.hljs-keyword') && document.querySelector('.katex')")
    found = {name: page.count(f".steps > .prose {name}") for name in (
        "h3", "h4", "ol > li", "ul", ".code", "table", "th", "tbody tr", "blockquote", "li.task",
        "sub", "kbd", "hr", ".maths.display .katex-display", "a", "p .maths .katex", "img",
        "script",
    )}  # fmt: skip
    assert found == {
        "h3": 1, "h4": 1, "ol > li": 3, "ul": 2, ".code": 1, "table": 1, "th": 4, "tbody tr": 3,
        "blockquote": 1, "li.task": 2, "sub": 1, "kbd": 1, "hr": 1,
        ".maths.display .katex-display": 2, "a": 2, "p .maths .katex": 2, "img": 0, "script": 0,
    }  # fmt: skip
    assert "$5 or $6" in page.text(".steps > .prose")
    # The drawn characters come from the fonts that are served here.
    assert page.run("document.fonts.check('16px KaTeX_Math')")
    assert page.complaints() == []


@long
def test_hostile_text_stays_text(page: Page, fake: FakeChat) -> None:
    fake.will(answer(HOSTILE, HOSTILE))
    ask(page, "<img src=x onerror='window.harmed = 1'>")
    page.click(".reasoning summary")
    page.wait("document.querySelectorAll('.katex').length === 4")
    assert page.text(".said") == "<img src=x onerror='window.harmed = 1'>"
    assert "<script>window.harmed = 1</script>" in page.text(".steps > .prose")
    assert page.count("#thread :is(script, img, iframe, style)") == 0
    links = page.run("[...document.querySelectorAll('.steps > .prose a')].map(a => a.protocol)")
    assert set(links) == {"https:"}
    assert page.run("window.harmed") is None
    requests = [event["request"]["url"] for event in page.events("Network.requestWillBeSent")]
    assert [url for url in requests if not url.startswith(fake.url)] == []


@long
@pytest.mark.parametrize("step", [1, 7, 64])
def test_text_that_grows_looks_like_text_that_came_at_once(page: Page, step: int) -> None:
    grown, whole = page.run(f"""(async () => {{
        const modules = performance.getEntriesByType('resource').map(entry => entry.name);
        const {{ Prose }} = await import(modules.find(name => name.endsWith('/markdown.js')));
        await import(modules.find(name => name.endsWith('/maths.js')).replace(
            'maths.js', 'vendor/katex/katex.min.js'));
        const text = {json.dumps(RICH)};
        const [grown, whole] = [document.createElement('div'), document.createElement('div')];
        const prose = new Prose(grown);
        for (let end = 0; end < text.length; end += {step}) prose.update(text.slice(0, end));
        prose.update(text);
        const grownHtml = grown.innerHTML;
        new Prose(whole).update(text, true);
        await new Promise(resolve => setTimeout(resolve, 1500));
        const read = (element) => element.innerText;
        return [read(grown), read(whole)];
    }})()""")
    assert grown == whole
    assert len(whole) > 500


@long
def test_blocks_that_are_finished_are_not_drawn_again(page: Page, fake: FakeChat) -> None:
    paragraphs = "\n\n".join(f"Paragraph {n} with **bold** words." for n in range(400))
    fake.will(answer(paragraphs))
    fake.hold()
    page.say("Write.")
    fake.release()
    page.wait("document.querySelectorAll('.steps > .prose > p').length > 3")
    page.run("document.querySelector('.steps > .prose > p').isFirst = true")
    page.wait("document.querySelectorAll('.steps > .prose > p').length === 400 && " + ENDED)
    assert page.run("document.querySelector('.steps > .prose > p').isFirst")
    # The newest text is in view.
    assert page.run("(s => s.scrollHeight - s.scrollTop - s.clientHeight < 2)(scroller)")


@long
def test_code_is_copied(browser: Chromium, page: Page, fake: FakeChat) -> None:
    browser.call(
        "Browser.grantPermissions",
        permissions=["clipboardReadWrite", "clipboardSanitizedWrite"],
        browserContextId=page.context,
    )
    fake.will(answer("Run:\n\n```js\nif (a < b && c) {\n  go();\n}\n```\n"))
    ask(page, "Code?")
    page.wait("document.querySelector('.hljs-keyword')")
    page.click("[aria-label='Copy code']")
    page.wait("document.querySelector('figcaption [title=Copied]')")
    assert page.run("navigator.clipboard.readText()") == "if (a < b && c) {\n  go();\n}"
    page.run("Object.defineProperty(navigator, 'clipboard', {value: undefined})")
    page.click(".answer .bar [aria-label=Copy]")
    page.wait("document.querySelector('.answer .bar [title=Copied]')")


# --- answers


@long
def test_reasoning_is_folded_and_counts_seconds(page: Page, fake: FakeChat) -> None:
    fake.will([*thinking("Let me see. "), IDLE, *saying("Done."), *ending()])
    fake.delay_s = 0.6
    page.say("Think.")
    page.wait("/Thinking… [1-9] s/.test(document.querySelector('.reasoning summary')?.innerText)")
    assert page.text(".reasoning .prose") == ""
    fake.delay_s = 0.0
    page.wait(ENDED)
    assert page.text(".reasoning summary").startswith("Thought for ")
    page.click(".reasoning summary")
    page.wait("document.querySelector('.reasoning .prose').innerText === 'Let me see.'")


@long
def test_settings_reach_the_server(page: Page, fake: FakeChat) -> None:
    page.click("[aria-label=Settings]")
    for name, text in {
        "temperature": "0.5",
        "top_k": "40",
        "seed": "12",
        "max_tokens": "99",
    }.items():
        page.click(f"#set-{name}")
        page.type(text)
    page.click("#set-top_p")
    page.type("7")  # out of range: refused
    page.click("#settings textarea")
    page.type("Be brief.")
    page.click("#settings .checks label:last-child input")
    page.click("#effort input[value=high] + span")
    page.run("model.value = 'nano'; model.dispatchEvent(new Event('change'))")
    ask(page, "Hi")
    body = fake.asked[-1]
    wanted = {
        "model": "nano", "reasoning": {"effort": "high"}, "temperature": 0.5, "top_k": 40,
        "seed": 12, "max_output_tokens": 99, "instructions": "Be brief.",
        "tools": [{"type": "web_search"}],
    }  # fmt: skip
    assert {name: body.get(name) for name in wanted} == wanted
    assert not {"top_p", "min_p", "top_logprobs"} & set(body)
    assert page.run("document.querySelector('#set-top_p').getAttribute('aria-invalid')") == "true"
    # The next conversation starts with them, after a reload too.
    page.press("k", CTRL)
    page.reload()
    page.wait("document.getElementById('model').value === 'nano'")
    assert page.run("document.querySelector('#effort :checked').value") == "high"


@long
@pytest.mark.parametrize("how", ["key", "button"])
def test_stopping_ends_the_request_and_keeps_what_came(
    page: Page, fake: FakeChat, how: str
) -> None:
    text = "and ".join(["one two three "] * 20).strip()
    fake.will([*saying(text), *[IDLE] * 10_000])
    fake.delay_s = 0.005
    page.say("Count.")
    page.wait(f"document.querySelector('.steps > .prose')?.innerText === '{text}'")
    page.wait("/tokens\\/s/.test(speed.innerText)")
    if how == "key":
        page.press("Escape")
    else:
        page.click("#send")
    wait_until(lambda: fake.num_closed == 1)
    fake.delay_s = 0.0
    page.wait(ENDED)
    assert page.text(".note") == "Stopped."
    assert page.text(".steps > .prose") == text
    fake.will(answer("Hello."))
    ask(page, "Go on.")
    assert contents(fake.asked[-1]) == ["Count.", text, "Go on."]


@long
def test_a_reload_in_the_middle_keeps_what_came(page: Page, fake: FakeChat) -> None:
    fake.will([*thinking("Hm."), *saying("Half of it"), *[IDLE] * 10_000])
    fake.delay_s = 0.005
    page.say("Tell me.")
    page.wait("document.querySelector('.steps > .prose')?.innerText === 'Half of it'")
    page.reload()
    fake.delay_s = 0.0
    page.wait("document.querySelector('.steps > .prose')?.innerText === 'Half of it'")
    assert "closed before the answer was whole" in page.text(".note")
    fake.will(answer("All of it."))
    page.click("[aria-label='Answer again']")
    page.wait("document.querySelector('.steps > .prose')?.innerText === 'All of it.'")
    page.wait("document.querySelector('.answer .alternatives')?.innerText.trim() === '2/2'")


SAVED = """new Promise(done => {
    const opening = indexedDB.open('aperto');
    opening.onsuccess = () => {
        const store = opening.result.transaction('conversations').objectStore('conversations');
        store.count().onsuccess = () => { opening.result.close(); done(true); };
    };
})"""
"""A read waits for the writes before it."""


@long
def test_editing_starts_another_branch(page: Page, fake: FakeChat) -> None:
    fake.will(answer("First answer."), answer("Second answer."), answer("Third answer."))
    ask(page, "One?")
    ask(page, "Two?")
    page.run("document.querySelector('.user [aria-label=Edit]').focus()")
    page.click(".user [aria-label=Edit]")
    page.run("document.querySelector('.edit textarea').select()")
    page.type("One, really?")
    page.press("Enter")
    page.wait("document.querySelectorAll('.message').length === 2 && " + ENDED)
    page.wait("document.querySelector('.steps > .prose').innerText === 'Third answer.'")
    assert contents(fake.asked[-1]) == ["One, really?"]
    assert page.text(".user .alternatives").split() == ["2/2"]
    page.click(".user [aria-label='Previous version']")
    page.wait("document.querySelectorAll('.message').length === 4")
    texts = page.run("[...document.querySelectorAll('.said')].map(e => e.innerText)")
    assert texts == ["One?", "Two?"]
    page.run(SAVED)
    page.reload()
    page.wait("document.querySelectorAll('.message').length === 4")


@long
def test_tools_and_their_calls_are_seen(page: Page, fake: FakeChat) -> None:
    fake.will(
        [
            *thinking("I run it."),
            *calling("python", "a = 1\nprint(a)", "1\n"),
            *item("function_call", [event("x.delta", delta='{"q": "x"}')], name="lookup"),
            *saying("It is 1."),
            *ending(warnings=["tools: one is left out"]),
        ]
    )
    ask(page, "Run it.")
    assert [page.count(name) for name in (".reasoning", ".call")] == [1, 2]
    assert page.text(".note") == "tools: one is left out"
    page.click(".call summary")
    page.wait("document.querySelector('.call').open")
    assert page.text(".call .input pre") == "a = 1\nprint(a)"
    assert page.text(".call .output pre").strip() == "1"
    page.run("document.querySelectorAll('.call')[1].open = true")
    assert "not run" in page.run("document.querySelectorAll('.call')[1].innerText")
    # The next turn knows what was run.
    ask(page, "And now?")
    call, text = fake.asked[-1]["input"][1:3]
    assert (call["type"], call["name"], call["output"]) == ("mcp_call", "python", "1\n")
    assert (text["role"], text["content"]) == ("assistant", "It is 1.")


@long
def test_prefill_is_shown_while_it_lasts(page: Page, fake: FakeChat) -> None:
    fake.will([
        prefill(512, 2048),
        *[IDLE] * 100, *saying("Read."), *ending(),
    ])  # fmt: skip
    fake.delay_s = 0.01
    page.say("Read this.")
    page.wait("document.querySelector('.wait')?.innerText.includes('512 of 2,048')")
    assert page.run("document.querySelector('.wait progress').position") == 0.25
    fake.delay_s = 0.0
    page.wait(ENDED)
    assert page.run("document.querySelector('.wait').hidden")


@long
def test_token_probabilities_are_coloured_and_explained(page: Page, fake: FakeChat) -> None:
    split = list("é".encode())
    half = {"token": "\ufffd", "logprob": -0.1, "bytes": split[:1], "top_logprobs": []}
    other = {"token": "\ufffd", "logprob": -0.1, "bytes": split[1:], "top_logprobs": []}
    fake.will([
        *drawn(("Rome", 0.95), (" or", 0.7), (" Milan", 0.05)),
        *item("message", [event("output_text.delta", delta="é", logprobs=[half, other])]),
        *ending(),
    ])  # fmt: skip
    switch(page, "logprobs")
    ask(page, "Where?")
    assert fake.asked[-1]["top_logprobs"] == 5
    page.click("[aria-label='Token probabilities']")
    assert page.text(".tokens") == "Rome or Milané"
    page.hover(1, 1)
    shades = page.run("[...document.querySelectorAll('.tokens .token')].map(e => e.className)")
    assert shades == ["token p0", "token p1", "token p4", "token p0", "token p0"]
    page.run("document.querySelector('.tokens').focus()")
    for _ in range(3):
        page.press("ArrowRight")
    page.wait("document.querySelector('.tip').innerText.includes('·Milan')")
    assert "5.0 %" in page.text(".tip .own")
    assert page.count(".tip .row") == 3
    page.click("[aria-label='Token probabilities']")
    assert page.count(".tokens") == 0
    assert page.text(".steps > .prose") == "Rome or Milan"


# --- what goes wrong


@long
@pytest.mark.parametrize(
    ("status", "code", "title"),
    [
        (400, "context_length_exceeded", "The conversation is too long for the model"),
        (404, "model_not_found", "Not found"),
        (429, "queue_full", "The server is busy"),
        (500, None, "The server failed"),
        (503, None, "The server is not ready"),
    ],
)
def test_errors_say_what_happened(
    page: Page, fake: FakeChat, status: int, code: str | None, title: str
) -> None:
    headers = {"Retry-After": "1"} if status == 429 else {}
    fake.will((status, {"message": "Found 9, expected 5.", "code": code}, headers), answer("Fine."))
    page.say("Hello?")
    page.wait("document.querySelector('.error')")
    assert page.text(".error h3") == title
    assert "Found 9, expected 5." in page.text(".error")
    if headers:
        assert page.text(".error button").startswith("Try again in")
        page.wait("!document.querySelector('.error button').disabled")
    page.click(".error button")
    page.wait("document.querySelector('.steps > .prose')?.innerText === 'Fine.'")
    # The failure left nothing behind.
    assert [page.count(".error"), page.count(".alternatives")] == [0, 0]


@long
def test_a_broken_connection_keeps_what_came(page: Page, fake: FakeChat) -> None:
    fake.will([*saying("So far"), BREAK])
    page.say("Hello?")
    page.wait("document.querySelector('.error')")
    assert page.text(".error h3") == "Connection lost"
    assert page.text(".steps > .prose") == "So far"


@long
def test_an_error_inside_the_stream_is_an_error(page: Page, fake: FakeChat) -> None:
    failed = event(
        "failed", response={"error": {"message": "out of pages", "code": "server_error"}}
    )
    fake.will([*saying("So far"), failed])
    page.say("Hello?")
    page.wait("document.querySelector('.error')")
    assert page.text(".error h3") == "The server failed"
    assert "out of pages" in page.text(".error p")
    error = {"message": "9 tokens, expected 5", "code": "context_length_exceeded"}
    fake.will([event("failed", response={"error": error})])
    page.click(".error button")
    page.wait(
        "document.querySelector('.error h3')?.innerText.startsWith('The conversation is too')"
    )


@long
def test_an_answer_that_was_cut_says_so(page: Page, fake: FakeChat) -> None:
    fake.will([*thinking("Hm."), *ending(incomplete_details={"reason": "max_output_tokens"})])
    ask(page, "Hello?")
    assert "Cut: the token limit" in page.text(".notes")
    assert "The model gave no answer." in page.text(".notes")


@long
def test_a_server_that_is_gone(browser: Chromium) -> None:
    fake = FakeChat()
    with running(fake.app()) as url:
        page = browser.page()
        page.open(url)
        page.wait("document.getElementById('model').options.length === 2")
    page.say("Hello?")
    page.wait("document.querySelector('.error')")
    assert page.text(".error h3") == "No connection"
    page.close()


@long
def test_a_key_is_asked_for_and_kept(browser: Chromium, fake: FakeChat) -> None:
    fake.key = "right"
    page = browser.page()
    page.open(fake.url)
    page.wait("document.querySelector('dialog[open]')")
    page.type("wrong")
    page.press("Enter")
    page.wait("document.querySelector('dialog[open] p')?.innerText.includes('refused')")
    page.press("Escape")
    page.say("Hello?")
    page.wait("document.querySelector('dialog[open]')")
    page.run("document.querySelector('#api-key').select()")
    page.type("right")
    page.press("Enter")
    page.wait("document.querySelector('.steps > .prose')?.innerText === 'Hello.'")
    page.reload()
    page.wait("document.getElementById('model').options.length === 2")
    assert page.count("dialog[open]") == 0
    page.close()


# --- conversations


@long
def test_conversations_are_renamed_found_deleted_and_brought_back(
    page: Page, fake: FakeChat
) -> None:
    fake.will(answer("A needle."), answer("Hay."))
    ask(page, "First question")
    page.press("k", CTRL)
    page.wait("!document.querySelector('.answer')")
    ask(page, "Second question")
    items = "[...document.querySelectorAll('.item a')].map(e => e.innerText)"
    assert page.run(items) == ["Second question", "First question"]
    page.run("document.querySelectorAll('.item a')[1].focus()")
    f2 = "new KeyboardEvent('keydown', {key: 'F2', bubbles: true})"
    page.run(f"document.activeElement.dispatchEvent({f2})")
    page.type("Renamed")
    page.press("Enter")
    page.wait(f"{items}.includes('Renamed')")
    page.click("#search")
    page.type("needle")
    page.wait(f"{items}.join() === 'Renamed'")
    page.run("search.value = ''; search.dispatchEvent(new Event('input'))")
    page.wait(f"{items}.length === 2")
    page.click(".item [aria-haspopup=menu]")
    page.wait("document.querySelector('.menu')")
    page.press("ArrowUp")  # to the last item, Delete
    page.press("Enter")
    page.wait(f"{items}.length === 1")
    page.click(".toast button")
    page.wait(f"{items}.length === 2")
    page.reload()
    page.wait(f"{items}.length === 2")


@long
def test_exports_are_read_back(
    browser: Chromium, page: Page, fake: FakeChat, tmp_path: Path
) -> None:
    browser.call(
        "Browser.setDownloadBehavior",
        behavior="allow", downloadPath=str(tmp_path), browserContextId=page.context,
    )  # fmt: skip
    fake.will(answer("It is `x`.\n\n```py\n1\n```", "Because."))
    ask(page, "Why? Well…")
    for row in (2, 3):
        page.click(".item [aria-haspopup=menu]")
        page.click(f".menu button:nth-child({row})")
        page.wait("!document.querySelector('.menu')")
    wait_until(lambda: len(list(tmp_path.glob("why-well.*"))) == 2)
    wait_until(lambda: not list(tmp_path.glob("*.crdownload")))
    markdown = (tmp_path / "why-well.md").read_text()
    assert markdown.startswith("# Why? Well…\n\n## You\n\nWhy? Well…\n\n## gpt-oss-20b\n")
    assert (
        "<summary>Thought for a moment</summary>\n\nBecause.\n\n</details>\n\nIt is `x`."
        in markdown
    )
    exported = tmp_path / "why-well.json"
    assert json.loads(exported.read_text())["format"] == "aperto-conversations"
    load(page, exported)
    page.wait("document.querySelectorAll('.item').length === 2")
    page.click(".item:not(:has([aria-current])) a")
    page.wait("document.querySelector('.steps > .prose code')?.innerText === 'x'")
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"format": "other"}')
    load(page, damaged)
    page.wait("document.querySelector('#toasts').innerText.includes('not an export of this page')")


def load(page: Page, path: Path) -> None:
    root = page.call("DOM.getDocument")["root"]["nodeId"]
    node = page.call("DOM.querySelector", nodeId=root, selector="#import-file")["nodeId"]
    page.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])


@long
def test_a_second_tab_follows(browser: Chromium, page: Page, fake: FakeChat) -> None:
    other = browser.tab(page.context)
    other.open(fake.url)
    other.wait("document.getElementById('model').options.length === 2")
    ask(page, "From the first tab")
    other.wait("document.querySelector('.item')?.innerText === 'From the first tab'")
    other.click(".item a")
    other.wait("document.querySelector('.steps > .prose')?.innerText === 'Hello.'")
    ask(page, "And more")
    other.wait("document.querySelectorAll('.message').length === 4")
    other.close()


# --- keys, screens, readers


@long
def test_keys(page: Page, fake: FakeChat) -> None:
    page.run("document.getElementById('input').focus()")
    page.type("one")
    page.press("Enter", SHIFT)
    page.type("two")
    assert page.run("document.getElementById('input').value") == "one\ntwo"
    page.press("Enter")
    page.wait(ENDED)
    assert contents(fake.asked[-1])[0] == "one\ntwo"
    page.press("ArrowUp")
    page.wait("document.activeElement.matches('.edit textarea')")
    page.press("Escape")
    assert page.count(".edit") == 0
    page.press("k", CTRL)
    page.wait("!document.getElementById('welcome').hidden")
    assert page.run("document.activeElement.id") == "input"
    page.type("unsent")
    page.press("k", CTRL)
    page.wait("document.getElementById('input').value === ''")


@long
def test_it_fits_a_phone(page: Page, fake: FakeChat) -> None:
    page.view(360, 640, phone=True)
    fake.will(answer(RICH + "\n\n" + "unbroken" * 60, "Hm."))
    page.run("document.getElementById('input').focus()")
    page.type("long" * 100)
    page.click("#send")
    page.wait(ENDED)
    page.wait("document.querySelector('.katex')")
    sticking_out = """[...document.querySelectorAll('#main *')].filter(e => {
        const scrolls = e.closest('pre, .table, .maths.display, #welcome, .offscreen');
        return !scrolls && e.getBoundingClientRect().right > innerWidth + 0.5;
    }).map(e => e.outerHTML.slice(0, 80))"""
    assert page.run(sticking_out) == []
    page.click("#bar-left button")
    page.wait("!document.getElementById('sidebar').hidden && document.getElementById('main').inert")
    page.click(".item a")
    page.wait("document.getElementById('sidebar').hidden")
    page.click("[aria-label=Settings]")
    page.wait("!document.getElementById('panel').hidden")
    assert page.run("document.getElementById('panel').getBoundingClientRect().left >= 0")
    page.press("Escape")
    page.wait("document.getElementById('panel').hidden")


@long
def test_the_theme_follows_the_system_until_one_is_chosen(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.prefer("light")
    light = page.run(ground)
    page.prefer("dark")
    dark = page.run(ground)
    assert light != dark
    page.click("[aria-label='Theme: system']")
    assert page.run(ground) == light
    page.reload()
    assert page.run(ground) == light
    page.click("[aria-label='Theme: light']")
    page.prefer("light")
    assert page.run(ground) == dark


@long
def test_everything_has_a_name_and_the_end_is_announced(page: Page, fake: FakeChat) -> None:
    fake.will(answer(RICH, "Hm."))
    ask(page, "Explain.")
    page.wait("document.getElementById('live').innerText === 'Answer complete, 42 tokens.'")
    page.click("[aria-label=Settings]")
    tree: list[dict[str, Any]] = page.call("Accessibility.getFullAXTree")["nodes"]
    roles = {
        "button",
        "textbox",
        "combobox",
        "checkbox",
        "radio",
        "spinbutton",
        "link",
        "searchbox",
    }
    nameless = [
        node["role"]["value"]
        for node in tree
        if not node["ignored"]
        and node["role"]["value"] in roles
        and not node.get("name", {}).get("value")
        and not any(p["name"] == "disabled" and p["value"]["value"] for p in node["properties"])
    ]
    assert nameless == []
