import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aperto.errors import ConfigError, UsageError
from aperto.server.seal import Sealer

SEALER = Sealer(bytes(range(32)))


@given(st.text(), st.sampled_from(["reasoning", "compaction"]))
def test_what_was_sealed_comes_back(text, purpose):
    text = text.encode("utf-8", "replace").decode()
    assert SEALER.unseal(SEALER.seal(text, purpose), purpose) == text


def test_equal_texts_look_different_and_tell_nothing():
    first, second = SEALER.seal("a secret", "reasoning"), SEALER.seal("a secret", "reasoning")
    assert first != second
    assert b"secret" not in base64.urlsafe_b64decode(first + "==")


@given(st.data())
def test_any_changed_byte_is_refused(data):
    sealed = SEALER.seal("seventeen times twenty-three", "reasoning")
    raw = bytearray(base64.urlsafe_b64decode(sealed + "=" * (-len(sealed) % 4)))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(UsageError, match="cannot be read"):
        SEALER.unseal(base64.urlsafe_b64encode(raw).decode(), "reasoning")


@pytest.mark.parametrize("sealed", ["", "x", "AQ", "not base64!", "é", "AQ" * 30])
def test_what_is_no_sealed_text_is_refused(sealed):
    with pytest.raises(UsageError, match="cannot be read"):
        SEALER.unseal(sealed, "reasoning")


def test_another_purpose_or_key_is_refused():
    sealed = SEALER.seal("text", "reasoning")
    with pytest.raises(UsageError):
        SEALER.unseal(sealed, "compaction")
    with pytest.raises(UsageError):
        Sealer(bytes(32)).unseal(sealed, "reasoning")


def test_a_key_file_is_made_for_its_owner_alone_and_kept(tmp_path):
    path = tmp_path / "state" / "seal.key"
    sealed = Sealer.from_file(path).seal("text", "reasoning")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in path.parent.iterdir()] == ["seal.key"]
    assert Sealer.from_file(path).unseal(sealed, "reasoning") == "text"


def test_a_key_that_others_may_read_or_that_is_none_is_refused(tmp_path):
    path = tmp_path / "seal.key"
    path.write_bytes(bytes(32))
    path.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        Sealer.from_file(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(ConfigError, match="5 bytes"):
        Sealer.from_file(path)
    with pytest.raises(ConfigError, match="3 bytes"):
        Sealer(b"key")
