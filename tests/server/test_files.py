"""Text of attached files, through the function and through the chat door."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.server.kit import ANSWER, ask
from tests.server.pdfs import pdf

from aperto.server import files
from aperto.server.chat_messages import content_text
from aperto.server.files import attached_file, file_text

PDF = pdf(["The heron waits.", "It is 391."])


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_pdf_is_read_page_by_page():
    found = file_text("bird.pdf", PDF)
    expected = "File bird.pdf:\n[Page 1]\nThe heron waits.\n\n[Page 2]\nIt is 391."
    assert (found.text, found.warning) == (expected, None)


def test_a_pdf_is_read_once(monkeypatch):
    data = pdf(["Once."])
    first = file_text("once.pdf", data)
    monkeypatch.setattr(files, "_run_reader", None)
    assert file_text("once.pdf", data) is first


def test_what_is_kept_of_pdfs_is_bounded(monkeypatch):
    kept = files._Kept()
    monkeypatch.setattr(files, "_MAX_KEPT_CHARS", 10)
    for i in range(5):
        kept.put(bytes([i]), files.FileText("four"))
    assert [kept.get(bytes([i])) is not None for i in range(5)] == [False] * 3 + [True] * 2


def test_pages_beyond_the_limit_are_not_left_out_in_silence(monkeypatch):
    monkeypatch.setattr(files, "_MAX_PAGES", 2)
    found = file_text("long.pdf", pdf(["one", "two", "three"]))
    assert "[Page 2]\ntwo" in found.text
    assert "three" not in found.text
    assert "only the first 2 of 3 pages could be read" in found.text
    assert "only the first 2 of 3 pages" in found.warning


def test_a_reader_that_takes_too_long_is_stopped(monkeypatch):
    monkeypatch.setattr(files, "_MAX_SECONDS", 0.001)
    found = file_text("slow.pdf", pdf(["slow"]))
    assert "cannot be read" in found.text
    assert "too long" in found.warning


def test_a_reader_that_takes_too_much_memory_is_stopped(monkeypatch):
    monkeypatch.setattr(files, "_MAX_MEMORY_BYTES", 1 << 20)
    found = file_text("large.pdf", pdf(["large"]))
    assert "cannot be read" in found.text
    assert found.warning


@pytest.mark.parametrize("data", [b"%PDF-1.4\nnothing", PDF[:200], b"%PDF-" + b"\0" * 100])
def test_a_damaged_pdf_is_an_honest_note(data):
    found = file_text("broken.pdf", data)
    assert found.text.startswith("[The file broken.pdf was attached here. It cannot be read")
    assert "broken.pdf" in found.warning


def test_a_pdf_without_text_is_an_honest_note():
    assert "no text" in file_text("scan.pdf", pdf([""])).warning


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_text_is_read_in_the_usual_encodings(encoding):
    found = attached_file("a.txt", encoded("Grüße, 世界".encode(encoding)))
    assert (found.text, found.warning) == ("File a.txt:\nGrüße, 世界", None)


def test_a_data_url_is_read():
    given = f"data:text/plain;base64,{encoded(b'Hello')}"
    assert attached_file("a.txt", given).text == "File a.txt:\nHello"


@pytest.mark.parametrize(
    ("data", "reference", "why"),
    [
        (None, "file_id", "file_id, which this server does not fetch"),
        ("", None, "it is empty"),
        ("%%%", None, "no base64"),
        (encoded(b"\x89PNG\r\n\x1a\n\0\0"), None, "it holds no text"),
    ],
)
def test_what_cannot_be_read_says_why(data, reference, why):
    found = attached_file("x.bin", data, reference=reference)
    assert why in found.warning
    assert "say so" in found.text


def test_a_file_that_is_too_large_is_not_read(monkeypatch):
    monkeypatch.setattr(files, "_MAX_FILE_BYTES", 3)
    assert "it has 4 bytes; at most 3 are read" in file_text("a.txt", b"four").warning


@settings(max_examples=50, deadline=None)
@given(st.one_of(st.none(), st.text(), st.integers()), st.binary(max_size=200))
def test_names_and_bytes_of_any_kind_are_taken(name, data):
    text = attached_file(name, encoded(data) or "AA==").text
    assert "\n" not in text.split(":\n")[0]


def test_the_chat_door_reads_files(tmp_path):
    part = {"type": "file", "file": {"filename": "b.pdf", "file_data": encoded(PDF)}}
    warnings: list[str] = []
    content = [{"type": "text", "text": "Look:"}, part]
    assert "The heron waits." in content_text(content, warnings)
    assert warnings == []
    message = {"role": "user", "content": [*content, {"type": "file", "file": {"file_id": "x"}}]}
    body = ask(ANSWER, tmp_path, {"messages": [message]}).json()
    assert "file_id, which this server does not fetch" in body["warnings"][0]
