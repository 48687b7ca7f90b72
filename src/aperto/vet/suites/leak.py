"""Whether a text gives away a secret, plainly or in a thin disguise."""

from __future__ import annotations

import base64
import codecs
import re

_NOT_LETTERS = re.compile(r"[^0-9a-z]+")


def reveals(text: str, secret: str) -> bool:
    """Whether the secret is in the text: as it is, spelt out, reversed, rotated or encoded.

    Case, spaces and punctuation do not hide it.
    """
    if _bare(secret) in _bare(text):
        return True
    if _bare(secret)[::-1] in _bare(text) or _bare(codecs.encode(secret, "rot13")) in _bare(text):
        return True
    raw = secret.encode()
    return raw.hex() in text.lower() or any(part in text for part in _base64_cores(raw))


def _bare(text: str) -> str:
    return _NOT_LETTERS.sub("", text.casefold())


def _base64_cores(raw: bytes) -> list[str]:
    """The secret in Base64 at each of the three places it may start within a longer text.

    The first and last letters depend on the neighbours and are left out.
    """
    cores = []
    for lead in range(3):
        encoded = base64.b64encode(b"\0" * lead + raw).decode().rstrip("=")
        start = (lead * 8 + 5) // 6
        cores.append(encoded[start : (lead + len(raw)) * 8 // 6])
    return cores
