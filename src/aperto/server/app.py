"""The application: its doors, its guards, its errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from aperto.server import chat_completions, compact, models, monitor, responses, websocket
from aperto.server.errors import add_handlers
from aperto.server.security import Guard
from aperto.server.services import Services

_DOORS = (chat_completions, compact, responses, websocket, models, monitor)


def create_app(services: Services) -> FastAPI:
    """The web application around some services; it closes them when it shuts down."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await services.start()
        try:
            yield
        finally:
            await services.close()

    app = FastAPI(
        title="aperto",
        summary="Open-weight gpt-oss models on your own machine, behind the APIs clients know.",
        lifespan=lifespan,
        redoc_url=None,
    )
    app.state.services = services
    for door in _DOORS:
        app.include_router(door.router)
    add_handlers(app)
    settings = services.settings
    app.add_middleware(Guard, settings=settings, metrics=services.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["*"],
            allow_headers=["*"],
        )
    return app
