"""`/v1/models`: what is served, in OpenAI's shape and in the catalogue that Codex reads."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from aperto.errors import ApertoError
from aperto.server.codex import codex_entry
from aperto.server.errors import ERROR_RESPONSES
from aperto.server.pool import ModelInfo
from aperto.server.response_tools import served_types
from aperto.server.services import Services, services

router = APIRouter(tags=["models"], responses=ERROR_RESPONSES)


@router.get("/v1/models")
async def list_models(served: Annotated[Services, Depends(services)]) -> dict[str, Any]:
    """List the served models, but those whose files cannot be read, and the server's tools."""
    infos = await asyncio.to_thread(_readable, served)
    return {
        "object": "list",
        "data": [model_object(info) for info in infos],
        "models": [codex_entry(info, priority) for priority, info in enumerate(infos)],
        "tools": list(served_types(served.settings.tools)),
    }


@router.get("/v1/models/{name:path}")
async def get_model(name: str, served: Annotated[Services, Depends(services)]) -> dict[str, Any]:
    """Describe one served model."""
    found, adapter = served.pool.resolve(name)
    if adapter is None:
        return model_object(await asyncio.to_thread(served.pool.info, found))
    return model_object(await asyncio.to_thread(served.pool.variant_info, found, adapter))


def _readable(served: Services) -> list[ModelInfo]:
    infos = []
    for name in served.pool.names():
        try:
            infos.append(served.pool.info(name))
            adapters = served.pool.adapters(name)
            infos += [served.pool.variant_info(name, adapter) for adapter in adapters]
        except ApertoError:
            continue  # asking for it by name says what is wrong with it
    return infos


def model_object(info: ModelInfo) -> dict[str, Any]:
    """OpenAI's model object, with the length of the context under the names that peers use."""
    return {
        "id": info.name,
        "object": "model",
        "created": info.created,
        "owned_by": "aperto",
        "context_window": info.context_tokens,
        "max_model_len": info.context_tokens,
        "system_fingerprint": info.fingerprint,
        **({} if info.vetted is None else {"vetted": info.vetted}),
    }
