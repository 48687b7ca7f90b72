"""The files of the web page as they are served, and what they may contain."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from aperto.server.page import MEDIA_TYPES, router, site

ROOT = Path(__file__).parents[2]
WEB = ROOT / "src/aperto/server/web"
VENDOR = WEB / "vendor"
OWN = sorted(path for path in WEB.iterdir() if path.is_file())
SCRIPTS = [path for path in OWN if path.suffix == ".js"]
VENDOR_LIMIT_BYTES = 1_500_000


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    app.include_router(router)
    return TestClient(app)


def names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def test_the_page_names_its_files_by_their_build(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    linked = re.findall(r'(?:src|href)="(web/[^"]+)"', page.text)
    assert len(linked) == 5
    for url in linked:
        assert url.startswith(f"web/{site().build}/")
        assert client.get(f"/{url}").status_code == 200


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("app.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("vendor/katex/fonts/KaTeX_Main-Regular.woff2", "font/woff2"),
        ("vendor/marked/marked.esm.js", "text/javascript; charset=utf-8"),
    ],
)
def test_files_have_their_type_and_never_change_below_their_build(
    client: TestClient, path: str, media_type: str
) -> None:
    found = client.get(f"/web/{site().build}/{path}")
    assert found.status_code == 200
    assert found.content == (WEB / path).read_bytes()
    assert found.headers["content-type"] == media_type
    assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
    # A tab that was opened before an update still finds its files, but asks again next time.
    other = client.get(f"/web/{'0' * 16}/{path}")
    assert (other.status_code, other.headers["cache-control"]) == (200, "no-cache")
    assert client.get(f"/web/{path}").headers["cache-control"] == "no-cache"


def test_what_a_browser_has_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/")
    again = client.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    changed = client.get("/", headers={"If-None-Match": 'W/"0"'})
    assert changed.status_code == 200


def test_text_is_compressed_where_the_browser_reads_that(client: TestClient) -> None:
    url = f"/web/{site().build}/vendor/katex/katex.min.js"
    zipped = client.get(url, headers={"Accept-Encoding": "gzip"})
    plain = client.get(url, headers={"Accept-Encoding": "identity"})
    assert zipped.headers["content-encoding"] == "gzip"
    assert int(zipped.headers["content-length"]) < len(plain.content) / 2
    assert zipped.content == plain.content
    assert "content-encoding" not in plain.headers


def test_head_and_unknown_files(client: TestClient) -> None:
    assert client.head("/").status_code == 200
    for path in ("nothing.js", "index.html", "vendor/marked/LICENSE", "%2e%2e/page.py", ""):
        missing = client.get(f"/web/{path}")
        assert missing.status_code == 404, path
        assert "content-security-policy" in missing.headers


def test_every_response_is_closed_to_other_hosts(client: TestClient) -> None:
    for url in ("/", "/web/app.js", "/web/vendor/katex/katex.min.css"):
        headers = client.get(url).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        for kind in ("script", "style", "font", "img", "connect"):
            assert policy[f"{kind}-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", OWN, ids=names(OWN))
def test_own_files_name_no_outside_host(path: Path) -> None:
    text = path.read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"\bhttps?://|[\"'(]//\w", text)


@pytest.mark.parametrize("path", SCRIPTS, ids=names(SCRIPTS))
def test_scripts_make_no_markup_or_code_out_of_text(path: Path) -> None:
    banned = (
        r"innerHTML|outerHTML|insertAdjacentHTML|DOMParser|document\.write|\beval\(|new Function"
    )
    assert not re.search(banned, path.read_text())


@pytest.mark.parametrize("path", SCRIPTS, ids=names(SCRIPTS))
def test_imports_name_what_is_there(path: Path) -> None:
    imports = re.findall(r'import \{([^}]*)\} from "\./([^"]+)"', path.read_text())
    for wanted, name in imports:
        source = (WEB / name).read_text()
        for word in filter(None, (part.strip() for part in wanted.split(","))):
            assert re.search(rf"export[^\n]*\b{word}\b", source) or name.startswith("vendor/")


def test_ids_that_scripts_ask_for_are_on_the_page() -> None:
    page = (WEB / "index.html").read_text()
    asked = {
        name for path in SCRIPTS for name in re.findall(r'\bat\("([^"]+)"\)', path.read_text())
    }
    assert asked
    assert {name for name in asked if f'id="{name}"' not in page} == set()


def test_notice_lists_the_vendored_files_and_their_hashes() -> None:
    listed = dict(
        reversed(line.split("  "))
        for line in (ROOT / "NOTICE").read_text().splitlines()
        if re.match(r"[0-9a-f]{64}  ", line)
    )
    files = [path for path in VENDOR.rglob("*") if path.is_file()]
    assert listed == {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }
    assert sum(path.stat().st_size for path in files) < VENDOR_LIMIT_BYTES
    for folder in VENDOR.iterdir():
        assert (folder / "LICENSE").is_file()


def test_notice_names_the_versions_that_are_there() -> None:
    notice = (ROOT / "NOTICE").read_text()
    marked = (VENDOR / "marked/marked.esm.js").read_text()
    highlight = (VENDOR / "highlight/core.min.js").read_text()
    katex = (VENDOR / "katex/katex.min.js").read_text()
    assert re.search(r"marked v(\S+)", marked).group(1) in notice  # type: ignore[union-attr]
    assert re.search(r"Highlight\.js v(\S+)", highlight).group(1) in notice  # type: ignore[union-attr]
    assert re.search(r'version:"([\d.]+)"', katex).group(1) in notice  # type: ignore[union-attr]


def test_languages_that_code_blocks_ask_for_are_there() -> None:
    table = re.search(r"const LANGUAGES = \{(.*?)\};", (WEB / "code.js").read_text(), re.DOTALL)
    assert table is not None
    wanted = set(re.findall(r': "(\w+)"', table.group(1)))
    there = {
        path.name.removesuffix(".min.js") for path in (VENDOR / "highlight/languages").iterdir()
    }
    assert wanted == there


def test_only_known_kinds_of_files_are_served() -> None:
    assert {path.rpartition(".")[2] for path in site().assets} <= set(MEDIA_TYPES)
