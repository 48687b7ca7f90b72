"""What a server is told when it starts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from aperto.config import Precision, state_dir
from aperto.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """How a server is reached, what it serves and within which limits.

    Raises ConfigError on values out of range.
    """

    models: tuple[str, ...] = ("nano",)
    """Models by name or path; the first is loaded at start, others when they are asked for."""
    adapters: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    """Adapters' folders and intervention files of the first model, by the names of its variants;
    a request asks for one as "model:name"."""
    host: str = "127.0.0.1"
    """Address to listen at."""
    port: int = 8000
    """TCP port; 0 takes a free one."""
    api_keys: tuple[str, ...] = ()
    """Keys of which a request must bring one; none lets everybody in."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may call the server; ("*",) is all of them."""
    check_host: bool = False
    """Whether requests must name this machine as their host (against DNS rebinding)."""
    precision: Precision = "q8"
    """Precision of the forward pass."""
    threads: int | None = None
    """Threads of a forward pass; None takes one a core."""
    context_tokens: int | None = None
    """Longest prompt and answer together; None as EngineConfig says."""
    cache_tokens: int | None = None
    """Tokens of all requests whose keys and values are held; None as EngineConfig says."""
    prompt_cache: Path | None = None
    """Folder where keys and values of long shared prompts outlive a restart; None saves none."""
    prompt_cache_bytes: int = 4 << 30
    """Most bytes of that folder."""
    max_concurrency: int = 16
    """Answers that are computed at once; others wait."""
    max_waiting: int = 2048
    """Requests that may wait; more get status 429."""
    max_body_bytes: int = 64 << 20
    """Largest body of a request."""
    max_choices: int = 128
    """Most choices (n) or prompts of one request."""
    idle_unload_s: float | None = None
    """Seconds without a request after which a model is unloaded; None keeps it."""
    memory_cap_bytes: int | None = None
    """Memory of all loaded models together; None means what the machine has."""
    heartbeat_s: float = 10.0
    """Seconds of silence in a stream after which an empty piece is sent."""
    recall_entries: int = 4096
    """Tool calls whose reasoning is remembered for clients that drop it."""
    moderation_model: str | None = None
    """Name or path of the model that judges for `/v1/moderations`; None judges nothing."""
    moderation_policy: Path | None = None
    """Policy file it judges by; None takes the package's own."""
    system: str = ""
    """Instructions put before those of every conversation."""
    tools: tuple[str, ...] = ()
    """Tools of the server that Responses requests may ask for, as `tools.open_tools` names them."""
    allow_unsandboxed: bool = False
    """Whether the python tool may run with the server's rights where there is no sandbox."""
    state_dir: Path = dataclasses.field(default_factory=state_dir)
    """Folder of what outlives a restart."""
    store_ttl_s: float = 30 * 86400.0
    """Seconds after its last use that a stored response is kept."""
    store_max_bytes: int = 1 << 30
    """Text of stored responses that is kept in all; the least recently used go first."""
    shutdown_grace_s: float = 30.0
    """Seconds that responses in the background may take to finish when the server stops."""

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("the server has no models; expected at least one name or path")
        for name in self.adapters:
            if not name or ":" in name or "/" in name:
                raise ConfigError(f"an adapter's name is {name!r}; expected one without : and /")
        for name in ("max_concurrency", "max_waiting", "max_body_bytes", "max_choices"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port is {self.port}; expected 0 to 65535")
        for name in (
            "heartbeat_s",
            "idle_unload_s",
            "memory_cap_bytes",
            "prompt_cache_bytes",
            "store_ttl_s",
            "store_max_bytes",
        ):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}; expected a number above 0")
        if not all(key.isascii() and key.strip() for key in self.api_keys):
            raise ConfigError("an API key is empty or not ASCII; expected printable characters")
