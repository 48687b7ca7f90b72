"""The application: its doors, its guards, its errors."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi

from aperto.server import (
    anthropic,
    chat_completions,
    compact,
    completions,
    models,
    moderations,
    monitor,
    ollama,
    ollama_models,
    page,
    responses,
    tokenize,
    websocket,
)
from aperto.server.errors import add_handlers
from aperto.server.security import Guard
from aperto.server.services import Services

_DOORS = (
    chat_completions,
    completions,
    responses,
    compact,
    websocket,
    anthropic,
    ollama,
    ollama_models,
    models,
    tokenize,
    moderations,
    monitor,
    page,
)


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
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
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


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document; a body that does not fit gets status 400 here, never 422."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes
        )
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        app.openapi_schema = document
    return app.openapi_schema
