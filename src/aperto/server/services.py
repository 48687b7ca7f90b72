"""What every door needs, built once and handed to each request."""

from __future__ import annotations

import dataclasses
from typing import Any

from starlette.requests import HTTPConnection

from aperto.server.metrics import Metrics
from aperto.server.pool import ModelPool
from aperto.server.recall import Recall
from aperto.server.settings import ServerSettings


@dataclasses.dataclass(slots=True)
class Services:
    """The server's parts. `create(settings)` builds those that are not given."""

    settings: ServerSettings
    pool: ModelPool
    recall: Recall
    metrics: Metrics
    store: Any = None
    """Where responses are kept; None keeps none."""
    sealer: Any = None
    """Encrypts reasoning that clients carry; None where there is no key."""

    @classmethod
    def create(cls, settings: ServerSettings, pool: ModelPool | None = None) -> Services:
        """Services as the settings ask for."""
        pool = pool or ModelPool(settings)
        return cls(settings, pool, Recall(settings.recall_entries), Metrics(pool))

    async def close(self) -> None:
        """Free what is held; running answers end with an error."""
        await self.pool.close()


def services(connection: HTTPConnection) -> Services:
    """The services of the app that a request or WebSocket came to (a FastAPI dependency)."""
    found: Services = connection.app.state.services
    return found
