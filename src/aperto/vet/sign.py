"""Signatures: a folder of reports signed with Ed25519, and a reviewer's word on a verdict."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from aperto.errors import SignatureError, UsageError

SIGNATURE_FILE = "signature.json"
ALGORITHM = "Ed25519"


def create_key(path: str | Path) -> str:
    """Write a new private key, readable by its owner alone; returns the public key, 64 hex digits.

    Raises UsageError where the file exists: a lost key cannot be had again.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{path} exists; choose another file for the new key") from error
    with os.fdopen(handle, "wb") as file:
        file.write(pem)
    return public_hex(key)


def read_key(path: str | Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises UsageError where the file holds none of Ed25519 without a password.
    """
    try:
        key = serialization.load_pem_private_key(Path(path).read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise UsageError(
            f"{path} holds no private key without a password; expected one in PEM"
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} holds a {type(key).__name__}; expected a key of {ALGORITHM}")
    return key


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public key of a private one, 64 hex digits."""
    return key.public_key().public_bytes_raw().hex()


def sign_folder(folder: str | Path, names: Iterable[str], key: Ed25519PrivateKey) -> Path:
    """Sign files of a folder: their hashes and the signature go into `signature.json` there.

    Raises UsageError for a name that is no plain file of the folder.
    """
    root = Path(folder)
    files = {name: _hash_of(root, name) for name in sorted(names)}
    if not files:
        raise UsageError(f"no files of {root} to sign; expected at least one name")
    content = {
        "algorithm": ALGORITHM,
        "public_key": public_hex(key),
        "files": files,
        "signature": base64.b64encode(key.sign(_payload(files))).decode(),
    }
    target = root / SIGNATURE_FILE
    target.write_text(_rendered(content), encoding="utf-8")
    return target


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """A folder whose signature holds."""

    public_key: str
    files: tuple[str, ...]
    """What was signed."""
    unsigned: tuple[str, ...]
    """Other files of the folder, about which nothing is known."""


def verify_folder(folder: str | Path, public_key: str | None = None) -> Verified:
    """Check that every signed file is what was signed, byte for byte.

    Args:
        folder: where `signature.json` lies.
        public_key: who must have signed, 64 hex digits; None takes anyone's word.

    Raises SignatureError that says what does not hold.
    """
    root = Path(folder)
    content = _read_signature(root / SIGNATURE_FILE)
    signer, files = content["public_key"], content["files"]
    if public_key is not None and signer != public_key.strip().lower():
        raise SignatureError(f"{root} was signed by {signer}; expected {public_key}")
    _check(signer, content["signature"], _payload(files), str(root))
    for name, expected in files.items():
        try:
            found = _hash_of(root, name)
        except UsageError as error:
            raise SignatureError(f"{name} was signed and is not there: {error}") from error
        if found != expected:
            raise SignatureError(
                f"{name} has the hash {found[:12]}…; signed was {expected[:12]}…: it was changed"
            )
    others = {path.name for path in root.iterdir()} - set(files) - {SIGNATURE_FILE}
    return Verified(signer, tuple(files), tuple(sorted(others)))


@dataclasses.dataclass(frozen=True, slots=True)
class SignOff:
    """A named person's word on one body of evidence, and no other."""

    reviewer: str
    protocol_sha256: str
    evidence_sha256: str
    """Hash of the rows looked at."""
    statement: str
    """What is accepted and why, in the reviewer's words."""
    at: str
    """UTC, ISO 8601."""
    signature: str
    """Base64, over the other fields."""

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SignOff:
        """What `to_json` wrote.

        Raises SignatureError where fields lack or are no text.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if set(data) != names or not all(isinstance(value, str) for value in data.values()):
            raise SignatureError(
                f"a sign-off with the fields {sorted(data)}; expected texts {sorted(names)}"
            )
        return cls(**data)


def sign_off(
    key: Ed25519PrivateKey,
    *,
    reviewer: str,
    protocol_sha256: str,
    evidence_sha256: str,
    statement: str,
    at: str,
) -> SignOff:
    """Put a reviewer's name to evidence."""
    unsigned = SignOff(reviewer, protocol_sha256, evidence_sha256, statement, at, "")
    signature = base64.b64encode(key.sign(_sign_off_payload(unsigned))).decode()
    return dataclasses.replace(unsigned, signature=signature)


def check_sign_off(word: SignOff, public_key: str) -> None:
    """Check a sign-off against the reviewer's registered key.

    Raises SignatureError where it does not hold.
    """
    _check(public_key, word.signature, _sign_off_payload(word), f"sign-off of {word.reviewer}")


def _sign_off_payload(word: SignOff) -> bytes:
    fields = word.to_json()
    del fields["signature"]
    return b"aperto sign-off\n" + json.dumps(fields, sort_keys=True).encode()


def _payload(files: Mapping[str, str]) -> bytes:
    return b"aperto report\n" + json.dumps(files, sort_keys=True).encode()


def _check(public_key: str, signature: str, payload: bytes, what: str) -> None:
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
        key.verify(base64.b64decode(signature, validate=True), payload)
    except InvalidSignature as error:
        raise SignatureError(f"{what}: the signature does not hold for {public_key}") from error
    except ValueError as error:
        raise SignatureError(f"{what}: the key or signature is damaged: {error}") from error


def _read_signature(path: Path) -> dict[str, Any]:
    """Content of a signature file; it must be byte for byte what `sign_folder` writes."""
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        raise SignatureError(
            f"{path} cannot be read ({error}); the folder is not signed"
        ) from error
    except ValueError as error:
        raise SignatureError(f"{path} is damaged: {error}") from error
    expected = {"algorithm": str, "public_key": str, "files": dict, "signature": str}
    fits = isinstance(content, dict) and all(
        isinstance(content.get(name), kind) for name, kind in expected.items()
    )
    if not fits or content["algorithm"] != ALGORITHM or _rendered(content) != text:
        raise SignatureError(f"{path} is damaged: it is not as it was written")
    return dict(content)


def _rendered(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2, sort_keys=True) + "\n"


def _hash_of(root: Path, name: str) -> str:
    path = root / name
    if Path(name).name != name or not path.is_file() or path.is_symlink():
        raise UsageError(f"{name!r} is no plain file of {root}")
    return hashlib.sha256(path.read_bytes()).hexdigest()
