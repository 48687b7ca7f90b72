"""`/health` and `/metrics`: whether the server is well, and what it did."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from aperto.server.services import Services, services

router = APIRouter(tags=["monitoring"])


@router.get("/health")
async def health(served: Annotated[Services, Depends(services)]) -> dict[str, Any]:
    """Say that the server is up, and which models are in memory."""
    loaded = served.pool.loaded()
    engines = [model.engine.stats() for model in loaded.values()]
    return {
        "status": "ok",
        "models": served.pool.names(),
        "loaded": list(loaded),
        "running": sum(stats.num_running for stats in engines),
        "waiting": sum(stats.num_waiting for stats in engines),
    }


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(served: Annotated[Services, Depends(services)]) -> PlainTextResponse:
    """Counters and gauges in Prometheus' text format."""
    return PlainTextResponse(served.metrics.text(), media_type=CONTENT_TYPE_LATEST)
