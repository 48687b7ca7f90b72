from pathlib import Path

import pytest

from aperto.config import Settings, config_path, load_settings, state_dir
from aperto.errors import ConfigError


@pytest.fixture
def config(tmp_path, monkeypatch):
    for variable in ("APERTO_CACHE", "APERTO_ISA", "APERTO_LOG", "APERTO_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    path = tmp_path / "own.toml"
    monkeypatch.setenv("APERTO_CONFIG", str(path))
    return path


def test_defaults_without_a_file(tmp_path, monkeypatch):
    monkeypatch.delenv("APERTO_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert config_path() == tmp_path / "aperto" / "config.toml"
    assert load_settings().default_model == "nano"


def test_every_key_is_read(config, monkeypatch):
    config.write_text(
        'default_model = "org/m"\nprecision = "exact"\nthreads = 3\ncontext = 4096\n'
        'effort = "high"\nreasoning = "hide"\nsystem = "Be brief."\ntemperature = 0\n'
        'top_p = 0.5\nmax_tokens = 9\nlog_level = "info"\ncache_dir = "~/c"\nisa = "avx2"\n'
        'weights = "/w"\n'
    )
    assert load_settings() == Settings(
        default_model="org/m",
        precision="exact",
        threads=3,
        context=4096,
        effort="high",
        reasoning="hide",
        system="Be brief.",
        temperature=0.0,
        top_p=0.5,
        max_tokens=9,
        log_level="info",
        cache_dir=Path.home() / "c",
        isa="avx2",
        weights=Path("/w"),
    )


def test_the_environment_wins_over_the_file(config, monkeypatch):
    config.write_text('isa = "avx2"\nlog_level = "info"\n')
    monkeypatch.setenv("APERTO_ISA", "reference")
    monkeypatch.setenv("APERTO_CACHE", "/c")
    settings = load_settings()
    assert (settings.isa, settings.cache_dir, settings.log_level) == (
        "reference",
        Path("/c"),
        "info",
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('efort = "low"', ["'efort'", "did you mean 'effort'", "default_model"]),
        ("zzz = 1", ["'zzz'", "known keys"]),
        ('effort = "max"', ["effort is 'max'", "low, medium, high"]),
        ("threads = -1", ["threads is -1", "0 or more"]),
        ("threads = true", ["threads is True"]),
        ("temperature = nan", ["temperature is nan"]),
        ("top_p = 0", ["top_p is 0", "above 0"]),
        ("cache_dir = 5", ["cache_dir is 5", "path"]),
        ("= 3", ["not a TOML file"]),
    ],
)
def test_what_is_wrong_is_named(config, text, words):
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings()
    message = str(caught.value)
    assert str(config) in message
    for word in words:
        assert word in message


def test_a_file_that_the_environment_names_must_exist(config):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_settings()


def test_a_wrong_variable_is_named(config, monkeypatch):
    config.write_text("")
    monkeypatch.setenv("APERTO_LOG", "loud")
    with pytest.raises(ConfigError, match="APERTO_LOG: log_level is 'loud'"):
        load_settings()


def test_relative_xdg_folders_are_ignored(monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "here")
    assert state_dir() == Path.home() / ".local/state/aperto"
