"""Pulling from a hub that the tests run on the loopback interface."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from tests.formats.hub_server import HubServer, hub_server
from tests.tiny import write_tiny

from aperto.errors import DiskSpaceError, DownloadError, ModelNotFoundError, UsageError
from aperto.formats import hub, open_checkpoint

REPO = "acme/tiny-gpt-oss"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A repository with all three layouts and files that no layout needs."""
    root = write_tiny(tmp_path / "repo", shards=2, tokenizer=True)
    write_tiny(root / "original", layout="openai")
    write_tiny(root / "tiny-gpt-oss-q8.gguf", layout="gguf", q8=True)
    write_tiny(root / "tiny-gpt-oss-bf16.gguf", layout="gguf")
    (root / "metal").mkdir()
    (root / "metal" / "model.bin").write_bytes(b"not needed")
    (root / "README.md").write_text("not needed")
    files = {
        str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()
    }
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    monkeypatch.setattr("time.sleep", lambda _: None)  # the client waits a second before a retry
    with hub_server(REPO, files) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", running.url)
        monkeypatch.setattr(
            constants,
            "HUGGINGFACE_CO_URL_TEMPLATE",
            running.url + "/{repo_id}/resolve/{revision}/{filename}",
        )
        yield running


def test_pull_fetches_the_root_layout_only(server: HubServer) -> None:
    seen: list[tuple[int, int]] = []
    folder = hub.pull(REPO, progress=lambda done, total: seen.append((done, total)))
    assert open_checkpoint(folder).layout == "hf"
    fetched = {name for name, _ in server.downloads()}
    assert not any("/" in name or name.endswith((".gguf", ".md")) for name in fetched)
    assert "tokenizer.json" in fetched
    assert seen[-1][0] == seen[-1][1] == sum(len(server.files[name]) for name in fetched)
    assert hub.resolve_model(REPO) == folder
    assert REPO in [entry.name for entry in hub.list_models()]


def test_pull_original_and_gguf(server: HubServer) -> None:
    assert open_checkpoint(hub.pull(REPO, "openai")).layout == "openai"
    assert all(name.startswith("original/") for name, _ in server.downloads())
    with pytest.raises(UsageError, match="2 GGUF files"):
        hub.pull(REPO, "gguf")
    file = hub.pull(REPO, "gguf", file="q8")
    assert file.name == "tiny-gpt-oss-q8.gguf"
    assert open_checkpoint(file).layout == "gguf"


def test_second_pull_downloads_nothing(server: HubServer) -> None:
    hub.pull(REPO)
    before = len(server.downloads())
    hub.pull(REPO)
    assert len(server.downloads()) == before


def test_dropped_connection_is_resumed_within_a_pull(server: HubServer) -> None:
    shard = "model-00001-of-00002.safetensors"
    server.break_after[shard], server.breaks_left = 1000, 2
    folder = hub.pull(REPO)
    assert (folder / shard).read_bytes() == server.files[shard]
    assert [span for name, span in server.downloads() if name == shard][1:] == [
        "bytes=1000-",
        "bytes=2000-",
    ]


def interrupt(_: float) -> None:
    raise KeyboardInterrupt


def test_interrupted_pull_goes_on_in_a_later_one(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = "model-00001-of-00002.safetensors"
    server.breaks_left = 1
    server.break_after[shard] = 5000
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("time.sleep", interrupt)  # where the client waits after the break
        hub.pull(REPO)
    with pytest.raises(ModelNotFoundError):
        hub.resolve_model(REPO)
    folder = hub.pull(REPO)
    last = [span for name, span in server.downloads() if name == shard][-1]
    assert last is not None and int(last.removeprefix("bytes=").rstrip("-")) >= 5000
    assert (folder / shard).read_bytes() == server.files[shard]


def test_too_small_disk_is_refused_before_any_download(
    server: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    with pytest.raises(DiskSpaceError, match="free"):
        hub.pull(REPO)
    assert server.downloads() == []


@pytest.mark.parametrize("difference", [-10, 10])
def test_file_of_wrong_size_is_refused(server: HubServer, difference: int) -> None:
    name = "model-00002-of-00002.safetensors"
    server.announced[name] = len(server.files[name]) + difference
    with pytest.raises(DownloadError, match=name):
        hub.pull(REPO)
    with pytest.raises(ModelNotFoundError):
        hub.resolve_model(REPO)


def test_unknown_repository(server: HubServer) -> None:
    with pytest.raises(DownloadError, match="acme/other"):
        hub.pull("acme/other")


def test_bad_requests(server: HubServer) -> None:
    with pytest.raises(UsageError, match="org/name"):
        hub.pull("../../etc/passwd")
    with pytest.raises(UsageError, match="layout"):
        hub.pull(REPO, "onnx")  # type: ignore[arg-type]
    del server.files["original/config.json"]
    with pytest.raises(UsageError, match="no openai layout"):
        hub.pull(REPO, "openai")


def test_resolve_model(tmp_path: Path, server: HubServer) -> None:
    assert hub.resolve_model(tmp_path) == tmp_path
    with pytest.raises(ModelNotFoundError, match="aperto pull acme/none"):
        hub.resolve_model("acme/none")
    with pytest.raises(ModelNotFoundError, match="expected a path"):
        hub.resolve_model("no such model")
    folder = hub.pull(REPO)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(ModelNotFoundError, match="1 of 2 shards"):
        hub.resolve_model(REPO)
    assert REPO not in [entry.name for entry in hub.list_models()]


@pytest.mark.parametrize(
    "name",
    ["", "x" * 300, "x/" * 3000, "org/" + "m" * 5000, "org/m\n", "a\0b", "~nosuchuser/model"],
    ids=["empty", "long", "deep", "long repository", "newline", "nul", "nobody's home"],
)
def test_names_that_no_file_can_have(name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="expected a path") as caught:
        hub.resolve_model(name)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("layout", ["hf", "gguf"])
def test_hub_that_names_files_outside_the_cache(server: HubServer, layout: Any) -> None:
    server.files["../../../evil.gguf"] = b"x"
    with pytest.raises(DownloadError, match=r"evil\.gguf"):
        hub.pull(REPO, layout)


def test_bad_revision(server: HubServer) -> None:
    with pytest.raises(UsageError, match="no revision"):
        hub.pull(REPO, revision="../../x")


def test_damaged_model_does_not_hide_others(server: HubServer) -> None:
    folder = hub.pull(REPO)
    cache = Path(constants.HF_HUB_CACHE)
    other = cache / "models--acme--broken"
    (other / "refs").mkdir(parents=True)
    (other / "refs" / "main").write_text("abc")
    (other / "snapshots" / "abc").mkdir(parents=True)
    (other / "snapshots" / "abc" / "config.json").write_text("{")
    assert [entry.path for entry in hub.list_models() if entry.name != "nano"] == [folder]
    index = folder / "model.safetensors.index.json"
    index.unlink()
    index.write_text("{}")
    with pytest.raises(ModelNotFoundError, match="index is damaged"):
        hub.resolve_model(REPO)
