"""`/api/version`, `/api/tags`, `/api/ps`, `/api/show`, `/api/pull`: models as Ollama tells them."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from aperto.config import LayerConfig, ModelConfig
from aperto.errors import ApertoError
from aperto.formats.hub import list_models
from aperto.server.errors import ApiError
from aperto.server.ollama import ERRORS, LINES, lines_response
from aperto.server.ollama_answers import timestamp
from aperto.server.ollama_request import plain_name
from aperto.server.pool import ModelInfo
from aperto.server.services import Services, services
from aperto.server.sse import JsonResponse
from aperto.server.wire_ollama import Json, NameRequest

OLLAMA_VERSION = "0.14.0"
"""The version of Ollama whose API these doors follow; clients refuse to talk to older ones."""
_FAMILY = "gptoss"
_YEAR_S = 365 * 86400

router = APIRouter(tags=["ollama"], responses=ERRORS)


@router.get("/api/version")
async def version() -> Json:
    """Tell which version of Ollama's API is spoken."""
    return {"version": OLLAMA_VERSION}


@router.get("/api/tags")
async def tags(served: Annotated[Services, Depends(services)]) -> Json:
    """List the served models; those whose files cannot be read are left out."""
    return {"models": await asyncio.to_thread(_tags, served)}


@router.get("/api/ps")
async def running(served: Annotated[Services, Depends(services)]) -> Json:
    """List the models that are in memory."""
    idle_s = served.settings.idle_unload_s
    expires = timestamp(time.time() + (idle_s or _YEAR_S))
    models = []
    for name, model in served.pool.loaded().items():
        info = served.pool.info(name)
        use = {
            "size": info.num_bytes,
            "size_vram": 0,
            "expires_at": expires,
            "context_length": model.engine.limit_tokens,
        }
        models.append(_entry(info) | use)
    return {"models": models}


@router.post("/api/show")
async def show(body: NameRequest, served: Annotated[Services, Depends(services)]) -> Json:
    """Describe a served model."""
    name, _ = served.pool.resolve(plain_name(body.wanted))
    info = await asyncio.to_thread(served.pool.info, name)
    return {
        "modelfile": f"FROM {name}",
        "parameters": "temperature 1\ntop_p 1",
        "template": "harmony, written by the server itself",
        "details": _details(info),
        "model_info": _model_info(info),
        "capabilities": ["completion", "tools", "thinking"],
        "modified_at": timestamp(info.created),
    }


@router.post("/api/pull", responses=LINES)
async def pull(body: NameRequest, served: Annotated[Services, Depends(services)]) -> Response:
    """Say that a model is there. One that was pulled before is served from now on.

    Nothing is downloaded: that takes `aperto pull` on the server's machine.
    """
    name = await asyncio.to_thread(_local_name, plain_name(body.wanted), served)
    if body.stream is False:
        return JsonResponse({"status": "success"})
    return lines_response(_pulled(name))


async def _pulled(name: str) -> AsyncIterator[Json]:
    for status in ("pulling manifest", f"{name} is on this machine", "success"):
        yield {"status": status}


def _local_name(wanted: str, served: Services) -> str:
    """Name of a model that is served, or pulled and from now on served."""
    try:
        name, adapter = served.pool.resolve(wanted)
        if wanted and adapter is None:
            return name
        if adapter in served.pool.adapters(name):
            return f"{name}:{adapter}"
    except ApiError:
        pass  # not served; it may still be on this machine
    if wanted in [entry.name for entry in list_models()]:
        return served.pool.add(wanted)
    there = ", ".join(served.pool.names())
    raise ApiError(
        404,
        f"pull model manifest: no model {wanted!r} is on this machine; there are: {there}; to "
        "download one, run on the server: aperto pull ORG/NAME",
        code="model_not_found",
        param="model",
    )


def _tags(served: Services) -> list[Json]:
    return [_entry(info) for info in _readable(served)]


def _readable(served: Services) -> Iterator[ModelInfo]:
    for name in served.pool.names():
        try:
            yield served.pool.info(name)
        except ApertoError:
            continue  # asking for it by name says what is wrong with it


def _entry(info: ModelInfo) -> Json:
    return {
        "name": info.name,
        "model": info.name,
        "modified_at": timestamp(info.created),
        "size": _file_bytes(info.path) or info.num_bytes,
        "digest": hashlib.sha256(info.fingerprint.encode()).hexdigest(),
        "details": _details(info),
    }


def _details(info: ModelInfo) -> Json:
    is_gguf = info.path is not None and info.path.suffix == ".gguf"
    return {
        "parent_model": "",
        "format": "gguf" if is_gguf else "safetensors",
        "family": _FAMILY,
        "families": [_FAMILY],
        "parameter_size": _short(num_parameters(info.config)) if info.config else "",
        "quantization_level": "MXFP4",
    }


def _model_info(info: ModelInfo) -> Json:
    found: Json = {
        "general.architecture": _FAMILY,
        "general.name": info.name,
        f"{_FAMILY}.context_length": info.context_tokens,
    }
    config = info.config
    if config is None:
        return found
    return found | {
        "general.parameter_count": num_parameters(config),
        f"{_FAMILY}.block_count": config.num_layers,
        f"{_FAMILY}.embedding_length": config.hidden_size,
        f"{_FAMILY}.attention.head_count": config.num_attention_heads,
        f"{_FAMILY}.attention.head_count_kv": config.num_key_value_heads,
        f"{_FAMILY}.expert_count": config.layers[0].num_experts,
        f"{_FAMILY}.expert_used_count": config.layers[0].experts_per_token,
    }


def num_parameters(config: ModelConfig) -> int:
    """Weights and biases of a model."""
    ends = 2 * config.vocab_size * config.hidden_size + config.hidden_size
    return ends + sum(_layer_parameters(config, layer) for layer in config.layers)


def _layer_parameters(config: ModelConfig, layer: LayerConfig) -> int:
    hidden, inner = config.hidden_size, config.intermediate_size
    rows_q = config.num_attention_heads * config.head_dim
    rows_qkv = rows_q + 2 * config.num_key_value_heads * config.head_dim
    attention = rows_qkv * (hidden + 1) + hidden * (rows_q + 1) + config.num_attention_heads
    expert = 2 * inner * (hidden + 1) + hidden * (inner + 1)
    router = hidden + 1
    norms = 2 * hidden
    return norms + attention + layer.num_experts * (router + expert)


def _short(count: int) -> str:
    """A count as Ollama writes it: 20.9B, 11.7M."""
    unit, sign = (10**9, "B") if count >= 10**9 else (10**6, "M")
    return f"{count / unit:.1f}{sign}"


def _file_bytes(path: Path | None) -> int:
    if path is None:
        return 0
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())
