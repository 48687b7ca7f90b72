from __future__ import annotations

import dataclasses
import hashlib
import zipfile
from pathlib import Path

import pytest

from aperto.errors import DownloadError, EvidenceError, UsageError
from aperto.vet import sources as module
from aperto.vet.sources import DataUnavailableError, Source, SourceFile, fetch, locate, sources

CONTENT = b"questions about bread\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(zipfile.ZipInfo("bread/data/questions.txt"), CONTENT)
        made.writestr(zipfile.ZipInfo("bread/__init__.py"), "raise SystemExit")
    return path.read_bytes()


def bread(archive_sha256: str | None = None, **fields: object) -> Source:
    one = Source(
        id="bread",
        title="Bread",
        kind="pypi",
        pin="1.0",
        licence="MIT",
        files=(SourceFile("questions.txt", "bread/data/questions.txt", sha256(CONTENT)),),
        origin="bread-questions-made-up",
        archive="bread.whl",
        sha256=archive_sha256,
    )
    return dataclasses.replace(one, **fields)  # type: ignore[arg-type]


def test_every_source_is_pinned_and_licensed() -> None:
    for one in sources().values():
        assert one.pin and one.licence and one.files, one.id
        if one.kind == "pypi":
            assert one.sha256 and one.archive and all(file.sha256 for file in one.files), one.id
        if one.kind == "hf":
            assert len(one.pin) == 40, one.id
        if one.hazard == "sensitive":
            assert one.kind == "file", one.id


def test_nothing_there_says_where_to_put_it(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailableError, match=r"not run.*DIR/bread/questions\.txt.*--fetch"):
        locate(bread(), tmp_path)
    with pytest.raises(UsageError, match="humaneval"):
        locate("sourdough")


def test_files_of_the_user_come_first(tmp_path: Path) -> None:
    (tmp_path / "bread").mkdir()
    (tmp_path / "bread" / "questions.txt").write_bytes(CONTENT)
    found = locate(bread(), tmp_path)
    assert found.path == tmp_path / "bread" / "questions.txt"
    assert found.sha256 == {"questions.txt": sha256(CONTENT)}


def test_another_file_than_the_pinned_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bread").mkdir()
    (tmp_path / "bread" / "questions.txt").write_bytes(CONTENT + b"!")
    with pytest.raises(EvidenceError, match="SHA-256"):
        locate(bread(), tmp_path)


def test_the_wheel_itself_may_lie_in_the_folder(tmp_path: Path) -> None:
    one = bread(sha256(wheel(tmp_path / "bread.whl")))
    found = locate(one, tmp_path)
    assert found.path.read_bytes() == CONTENT
    assert [path.name for path in found.path.parent.iterdir()] == ["questions.txt"]


def test_fetch_takes_only_the_data_and_checks_the_wheel(tmp_path: Path) -> None:
    data = wheel(tmp_path / "made.whl")
    calls: list[str] = []

    def download(one: Source, folder: Path) -> None:
        calls.append(one.id)
        (folder / "bread.whl").write_bytes(data)

    with pytest.raises(EvidenceError, match=r"bread\.whl"):
        fetch(bread("0" * 64), download=download)
    one = bread(sha256(data))
    assert fetch(one, download=download).path.read_bytes() == CONTENT
    assert fetch(one, download=download).path.read_bytes() == CONTENT
    assert calls == ["bread", "bread"]  # the third was in the cache


def test_sensitive_files_are_never_fetched_nor_taken_from_the_cache(tmp_path: Path) -> None:
    def download(one: Source, folder: Path) -> None:
        raise AssertionError("fetched")

    with pytest.raises(DataUnavailableError) as raised:
        fetch(bread(hazard="sensitive"), download=download)
    assert "--fetch" not in str(raised.value)


def test_pip_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.sys, "executable", "/bin/false")
    with pytest.raises(DownloadError, match=r"bread-questions-made-up==1\.0"):
        fetch(bread("0" * 64))
