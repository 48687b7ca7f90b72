"""The models behind one server: loaded when asked for, unloaded when idle or for want of memory."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from aperto.config import EngineConfig, ModelConfig
from aperto.engine import Engine, default_context_tokens, plan_cache_bytes
from aperto.engine.memory import CacheShape
from aperto.errors import MemoryLimitError
from aperto.formats import open_checkpoint
from aperto.formats.hub import resolve_model
from aperto.formats.lineage import NOT_VETTED, read_lineage
from aperto.formats.packed import packed_bytes
from aperto.local_model import LocalModel, load
from aperto.server.errors import ApiError
from aperto.server.settings import ServerSettings

_log = logging.getLogger(__name__)

Loader = Callable[[str], LocalModel]
"""Loads a model by name or path; called in a thread."""

# Names under which clients ask for "the gpt-oss model" without knowing what is served.
_FAMILY = re.compile(r"^(default|gpt-oss(-(20b|120b|latest))?)$")
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True, slots=True)
class ModelInfo:
    """What is known of a served model without loading it."""

    name: str
    """Name under which it is served."""
    created: int
    """When its files were written, in seconds since 1970."""
    context_tokens: int
    """Longest prompt and answer together, in tokens."""
    num_bytes: int
    """Memory that its weights and cache take."""
    fingerprint: str
    """Identity of files, precision and version: equal ones give equal answers."""
    config: ModelConfig | None = None
    """Its architecture; None for a model that did not come from files."""
    path: Path | None = None
    """Folder or file of the model, or of its variant."""
    vetted: str | None = None
    """Of variants and derived models: what is known of their safety, "no" until it was tested."""


@dataclasses.dataclass(frozen=True, slots=True)
class Lease:
    """A loaded model, kept in memory until the lease is given back."""

    name: str
    """Name under which it is served."""
    adapter: str | None
    """Adapter that the request named, as in "base:adapter"."""
    model: LocalModel
    """The model."""
    info: ModelInfo
    """What it is."""

    @property
    def engine(self) -> Engine:
        """Its engine."""
        return self.model.engine


class _Slot:
    """One served model, loaded or not."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.model: LocalModel | None = None
        self.info: ModelInfo | None = None
        self.num_leases = 0
        self.used_at = time.monotonic()
        self.loading = asyncio.Lock()


class ModelPool:
    """Lends loaded models to requests; used from one event loop.

    Args:
        settings: which models, and within which limits.
        loader: loads a model; by default `aperto.load` with the settings' engine.
        describe: what is known of a model before it is loaded; by default read from its files.
    """

    def __init__(
        self,
        settings: ServerSettings,
        loader: Loader | None = None,
        describe: Callable[[str, str], ModelInfo] | None = None,
    ) -> None:
        self._settings = settings
        self._load = loader or self._load_local
        self._describe = describe or self._describe_files
        self._slots: dict[str, _Slot] = {}
        for source in settings.models:
            self.add(source)
        self._reaper: asyncio.Task[None] | None = None

    @property
    def engine_config(self) -> EngineConfig:
        """The engine settings of every model."""
        settings = self._settings
        return EngineConfig(
            context_tokens=settings.context_tokens,
            cache_tokens=settings.cache_tokens,
            max_sequences=settings.max_concurrency,
            max_waiting=settings.max_waiting,
            max_batch_tokens=max(512, settings.max_concurrency),
            prefix_dir=settings.prompt_cache,
            prefix_disk_bytes=settings.prompt_cache_bytes,
        )

    def add(self, source: str) -> str:
        """Serve one more model, by name or path; returns the name it is served under."""
        path = Path(source).expanduser()
        is_path = source.startswith((".", "/", "~")) or path.suffix == ".gguf"
        name = path.resolve().name if is_path else source
        if name in self._slots and self._slots[name].source != source:
            name = source  # two folders of one name keep their paths
        self._slots.setdefault(name, _Slot(name, source))
        return name

    def names(self) -> list[str]:
        """Names of the served models, the default one first."""
        return list(self._slots)

    def loaded(self) -> dict[str, LocalModel]:
        """The models that are in memory."""
        return {slot.name: slot.model for slot in self._slots.values() if slot.model is not None}

    def resolve(self, name: str | None) -> tuple[str, str | None]:
        """The served model and the adapter that a request's `model` means.

        None and "" mean the default model. Raises ApiError 404 for unknown ones.
        """
        if not name:
            return next(iter(self._slots)), None
        if (found := self._find(name)) is not None:
            return found, None
        base, _, adapter = name.rpartition(":")
        if adapter and (found := self._find(base)) is not None:
            return found, adapter
        raise ApiError(
            404,
            f"no model {name!r} is served here; there are: {', '.join(self._slots)}",
            code="model_not_found",
            param="model",
        )

    def _find(self, name: str) -> str | None:
        if name in self._slots:
            return name
        plain = _plain_name(name)
        fitting = [slot for slot in self._slots if _plain_name(slot) == plain]
        if len(fitting) == 1:
            return fitting[0]
        is_family = _FAMILY.match(plain) is not None
        return next(iter(self._slots)) if is_family and len(self._slots) == 1 else None

    def info(self, name: str) -> ModelInfo:
        """What a served model is, read from its files where it is not loaded. Blocks briefly.

        Raises ModelNotFoundError and CheckpointError where the files are gone or damaged.
        """
        slot = self._slots[name]
        if slot.info is None:
            slot.info = self._describe(slot.name, slot.source)
        return slot.info

    def adapters(self, name: str) -> tuple[str, ...]:
        """Names of the variants of a served model, adapters and interventions alike."""
        return tuple(self._settings.adapters) if name == next(iter(self._slots)) else ()

    def variant_info(self, name: str, adapter: str) -> ModelInfo:
        """What a variant of a served model is. Blocks briefly; raises as `info` does.

        Raises ApiError 404 for an unknown one.
        """
        self._require_adapter(name, adapter)
        path = self._settings.adapters[adapter]
        base = self.info(name)
        return dataclasses.replace(
            base,
            name=f"{name}:{adapter}",
            fingerprint=f"{base.fingerprint}-{_files_hash(path)}",
            path=path,
            vetted=_vetted(path) or NOT_VETTED,
        )

    def _require_adapter(self, name: str, adapter: str) -> None:
        if adapter not in self.adapters(name):
            there = (*self._slots, *(f"{name}:{known}" for known in self.adapters(name)))
            raise ApiError(
                404,
                f"{name!r} has no adapter {adapter!r} here; there are: {', '.join(there)}",
                code="model_not_found",
                param="model",
            )

    @contextlib.asynccontextmanager
    async def lease(self, name: str | None) -> AsyncIterator[Lease]:
        """A model in memory for the time of a `with` block; it is loaded where it is not.

        Raises ApiError 404 for an unknown model or adapter, and what loading raises.
        """
        served, adapter = self.resolve(name)
        if adapter is not None:
            self._require_adapter(served, adapter)  # before the model is loaded for it
        slot = self._slots[served]
        slot.num_leases += 1
        try:
            model, info = await self._loaded(slot)
            if adapter is not None:
                model = model.variant(adapter)
                info = await asyncio.to_thread(self.variant_info, served, adapter)
            yield Lease(info.name if adapter else served, adapter, model, info)
        finally:
            slot.num_leases -= 1
            slot.used_at = time.monotonic()

    async def preload(self) -> None:
        """Load the default model now."""
        async with self.lease(None):
            pass

    async def unload(self, name: str) -> bool:
        """Free a model that nobody uses; False where it is in use or not loaded."""
        slot = self._slots[name]
        if slot.num_leases or slot.model is None:
            return False
        model, slot.model = slot.model, None
        _log.info("unloading %s", name)
        await asyncio.to_thread(model.close)
        return True

    def start(self) -> None:
        """Begin to unload idle models, if the settings ask for it."""
        if self._settings.idle_unload_s is not None and self._reaper is None:
            self._reaper = asyncio.create_task(self._reap(self._settings.idle_unload_s))

    async def close(self) -> None:
        """Free all models; answers that still run end with EngineClosedError."""
        if self._reaper is not None:
            self._reaper.cancel()
        for slot in self._slots.values():
            model, slot.model = slot.model, None
            if model is not None:
                await asyncio.to_thread(model.close)

    async def _loaded(self, slot: _Slot) -> tuple[LocalModel, ModelInfo]:
        async with slot.loading:
            if slot.model is None:
                info = await asyncio.to_thread(self.info, slot.name)
                await self._make_room(info)
                _log.info("loading %s", slot.name)
                slot.model = await asyncio.to_thread(self._load, slot.source)
            assert slot.info is not None
            return slot.model, slot.info

    async def _make_room(self, wanted: ModelInfo) -> None:
        """Unload idle models, the longest unused first, until the wanted one is under the cap."""
        cap = self._settings.memory_cap_bytes
        if cap is None:
            return
        if wanted.num_bytes > cap:
            raise MemoryLimitError(
                f"{wanted.name} takes {wanted.num_bytes / _GIB:.2f} GiB, but the server may use "
                f"{cap / _GIB:.2f} GiB; raise --memory-cap or lower --context"
            )
        for slot in self._by_last_use():
            if self._used_bytes() + wanted.num_bytes <= cap:
                return
            await self.unload(slot.name)
        if self._used_bytes() + wanted.num_bytes > cap:
            busy = ", ".join(self.loaded())
            raise MemoryLimitError(
                f"{wanted.name} takes {wanted.num_bytes / _GIB:.2f} GiB, but {busy} are in use and "
                f"the server may use {cap / _GIB:.2f} GiB; try again later"
            )

    def _by_last_use(self) -> Iterator[_Slot]:
        loaded = [slot for slot in self._slots.values() if slot.model is not None]
        return iter(sorted(loaded, key=lambda slot: slot.used_at))

    def _used_bytes(self) -> int:
        return sum(s.info.num_bytes for s in self._slots.values() if s.model and s.info)

    async def _reap(self, idle_s: float) -> None:
        while True:
            await asyncio.sleep(min(idle_s, 30.0))
            for slot in list(self._slots.values()):
                if slot.model is not None and time.monotonic() - slot.used_at >= idle_s:
                    await self.unload(slot.name)

    def _load_local(self, source: str) -> LocalModel:
        settings = self._settings
        return load(
            source,
            precision=settings.precision,
            threads=settings.threads,
            config=self.engine_config,
            adapters=settings.adapters if source == settings.models[0] else None,
        )

    def _describe_files(self, name: str, source: str) -> ModelInfo:
        precision, engine = self._settings.precision, self.engine_config
        path = resolve_model(source)
        checkpoint = open_checkpoint(path)
        shape = CacheShape(checkpoint.config, precision)
        context = engine.context_tokens or default_context_tokens(shape)
        weights = packed_bytes(checkpoint, precision)
        return ModelInfo(
            name=name,
            created=int(path.stat().st_mtime),
            context_tokens=min(context, checkpoint.config.max_context),
            num_bytes=weights + plan_cache_bytes(shape, engine),
            fingerprint=f"aperto-{_version()}-{precision}-{checkpoint.fingerprint()[:16]}",
            config=checkpoint.config,
            path=path,
            vetted=_vetted(path),
        )


def _vetted(path: Path) -> str | None:
    lineage = read_lineage(path) if path.is_dir() else None
    return None if lineage is None else lineage.vetted


def _files_hash(path: Path) -> str:
    """Identity of an adapter's files: names, sizes and times of change."""
    files = sorted(path.iterdir()) if path.is_dir() else [path, path.with_suffix(".npz")]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _plain_name(name: str) -> str:
    """A name without its organisation, with Ollama's colon as a dash."""
    return name.rpartition("/")[2].lower().replace(":", "-")


def _version() -> str:
    try:
        return version("aperto")
    except PackageNotFoundError:
        return "unknown"
