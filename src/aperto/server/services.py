"""What every door needs, built once and handed to each request."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from starlette.requests import HTTPConnection

from aperto.moderation import Policy, default_policy, read_policy
from aperto.server.metrics import Metrics
from aperto.server.pool import ModelPool
from aperto.server.recall import Recall
from aperto.server.seal import Sealer
from aperto.server.settings import ServerSettings
from aperto.server.store import Store

if TYPE_CHECKING:
    from aperto.server.background import Background


@dataclasses.dataclass(slots=True)
class Services:
    """The server's parts. `create(settings)` builds those that are not given."""

    settings: ServerSettings
    pool: ModelPool
    recall: Recall
    metrics: Metrics
    store: Store | None = None
    """Where responses are kept; None keeps none."""
    sealer: Sealer | None = None
    """Encrypts reasoning that clients carry; None where there is no key."""
    background: Background | None = None
    """Makes responses that nobody waits for; None where none are kept."""
    judge: str | None = None
    """Name of the model that judges for moderation; None where there is none."""
    policy: Policy | None = None
    """What it judges by."""

    @classmethod
    def create(cls, settings: ServerSettings, pool: ModelPool | None = None) -> Services:
        """Services as the settings ask for."""
        from aperto.server.background import Background  # needs this module itself

        by = settings.moderation_policy
        policy = read_policy(by) if by else default_policy()
        pool = pool or ModelPool(settings)
        store = Store(
            settings.state_dir / "responses.db",
            ttl_s=settings.store_ttl_s,
            max_bytes=settings.store_max_bytes,
        )
        return cls(
            settings,
            pool,
            Recall(settings.recall_entries),
            Metrics(pool),
            store,
            Sealer.from_file(settings.state_dir / "seal.key"),
            Background(store),
            judge=settings.moderation_model and pool.add(settings.moderation_model),
            policy=policy,
        )

    async def start(self) -> None:
        """Take up the work: what a killed server left behind comes first."""
        self.pool.start()
        if self.background is not None:
            await self.background.recover()

    async def close(self) -> None:
        """Free what is held; answers that take longer than the grace end with an error."""
        if self.background is not None:
            await self.background.close(self.settings.shutdown_grace_s)
        await self.pool.close()
        if self.store is not None:
            self.store.close()


def services(connection: HTTPConnection) -> Services:
    """The services of the app that a request or WebSocket came to (a FastAPI dependency)."""
    found: Services = connection.app.state.services
    return found
