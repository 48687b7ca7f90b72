"""Text that clients carry for the server: encrypted and authenticated under the server's key."""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Literal

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from aperto.errors import ConfigError, UsageError

Purpose = Literal["reasoning", "compaction"]
"""What a sealed text is; one kind cannot be passed off as the other."""

_VERSION = b"\x01"
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16


class Sealer:
    """Seals text with AES-256-GCM under one key; thread-safe.

    A sealed text is unpadded URL-safe base64 of one version byte, a random 12-byte nonce, the
    ciphertext and its 16-byte tag.

    Args:
        key: 32 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != _KEY_BYTES:
            raise ConfigError(f"the sealing key has {len(key)} bytes; expected {_KEY_BYTES}")
        self._cipher = AESGCM(key)

    @classmethod
    def from_file(cls, path: Path) -> Sealer:
        """The sealer of a key file, which is made where it is missing, for its owner alone.

        Raises ConfigError where others may read the file, or where it holds no key.
        """
        _make_key(path)
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise ConfigError(
                f"{path}: its mode is {mode:o}, so others may read the key; run: chmod 600 {path}"
            )
        key = path.read_bytes()
        if len(key) != _KEY_BYTES:
            raise ConfigError(
                f"{path}: holds {len(key)} bytes; expected a key of {_KEY_BYTES}. Remove the file "
                "to have a new one made; what was sealed under the old key is then lost"
            )
        return cls(key)

    def seal(self, text: str, purpose: Purpose) -> str:
        """The text, readable for this server alone."""
        nonce = secrets.token_bytes(_NONCE_BYTES)
        body = self._cipher.encrypt(nonce, text.encode("utf-8", "replace"), _label(purpose))
        return base64.urlsafe_b64encode(_VERSION + nonce + body).rstrip(b"=").decode("ascii")

    def unseal(self, sealed: str, purpose: Purpose) -> str:
        """The text that was sealed.

        Raises UsageError where it was changed, cut, or sealed by another server or for another
        purpose.
        """
        raw = _decoded(sealed)
        if len(raw) < len(_VERSION) + _NONCE_BYTES + _TAG_BYTES or raw[:1] != _VERSION:
            raise _refusal(purpose, "it is not in this server's format")
        nonce, body = raw[1 : 1 + _NONCE_BYTES], raw[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, body, _label(purpose)).decode("utf-8")
        except InvalidTag:
            raise _refusal(purpose, "it was changed, or comes from another server") from None


def _label(purpose: Purpose) -> bytes:
    return b"aperto " + purpose.encode("ascii")


def _refusal(purpose: Purpose, why: str) -> UsageError:
    return UsageError(
        f"encrypted_content of a {purpose} item cannot be read: {why}; "
        "send it back as it was received, or leave the item out"
    )


def _decoded(sealed: str) -> bytes:
    padded = sealed + "=" * (-len(sealed) % 4)
    try:
        return base64.b64decode(padded.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError):
        return b""


def _make_key(path: Path) -> None:
    """Write a new key unless there is a file; of several servers that try, one wins."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(_KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first
            path.hardlink_to(fresh)
    finally:
        fresh.unlink(missing_ok=True)
