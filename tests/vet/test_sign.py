"""Signatures fail on any changed byte."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aperto.errors import SignatureError, UsageError
from aperto.vet.sign import (
    SIGNATURE_FILE,
    SignOff,
    create_key,
    read_key,
    sign_folder,
    verify_folder,
)

NAMES = ("report.json", "report.html")


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    create_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def folder(tmp_path: Path, key_file: Path) -> Path:
    root = tmp_path / "report"
    root.mkdir()
    (root / NAMES[0]).write_text('{"decision": "PASS"}')
    (root / NAMES[1]).write_text("<p>PASS</p>")
    (root / "notes.txt").write_text("mine")
    sign_folder(root, NAMES, read_key(key_file))
    return root


def test_an_untouched_folder_verifies(folder: Path, key_file: Path):
    found = verify_folder(folder)
    assert found.files == tuple(sorted(NAMES)) and found.unsigned == ("notes.txt",)
    assert verify_folder(folder, found.public_key) == found
    assert key_file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.data())
def test_one_changed_byte_anywhere_fails(folder: Path, data: st.DataObject):
    path = folder / data.draw(st.sampled_from((*NAMES, SIGNATURE_FILE)))
    whole = path.read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[place]))
    try:
        path.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
        with pytest.raises(SignatureError):
            verify_folder(folder)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("change", [b"", b" "])
def test_missing_and_longer_files_fail(folder: Path, change: bytes):
    path = folder / NAMES[0]
    path.write_bytes(path.read_bytes() + change) if change else path.unlink()
    with pytest.raises(SignatureError):
        verify_folder(folder)


def test_another_signer_is_told_apart(folder: Path, tmp_path: Path):
    other = create_key(tmp_path / "other.pem")
    with pytest.raises(SignatureError, match="expected"):
        verify_folder(folder, other)
    content = json.loads((folder / SIGNATURE_FILE).read_text())
    content["public_key"] = other
    text = json.dumps(content, indent=2, sort_keys=True) + "\n"
    (folder / SIGNATURE_FILE).write_text(text)
    with pytest.raises(SignatureError, match="does not hold"):
        verify_folder(folder)


@pytest.mark.parametrize("name", ["../key.pem", "sub", "none.json"])
def test_only_plain_files_of_the_folder_are_signed(folder: Path, key_file: Path, name: str):
    (folder / "sub").mkdir(exist_ok=True)
    with pytest.raises(UsageError, match="no plain file"):
        sign_folder(folder, [name], read_key(key_file))
    with pytest.raises(UsageError, match="at least one"):
        sign_folder(folder, [], read_key(key_file))


def test_an_unsigned_folder_says_so(tmp_path: Path):
    with pytest.raises(SignatureError, match="not signed"):
        verify_folder(tmp_path)


def test_keys_of_other_kinds_are_refused(tmp_path: Path, key_file: Path):
    with pytest.raises(UsageError, match="exists"):
        create_key(key_file)
    (tmp_path / "text").write_text("no key")
    with pytest.raises(UsageError, match="PEM"):
        read_key(tmp_path / "text")
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "curve").write_bytes(pem)
    with pytest.raises(UsageError, match="expected a key of Ed25519"):
        read_key(tmp_path / "curve")


def test_sign_offs_have_all_their_fields():
    with pytest.raises(SignatureError, match="expected texts"):
        SignOff.from_json({"reviewer": "A"})
