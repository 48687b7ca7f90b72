"""`/tokenize`, `/detokenize`, `/tokenizer_info`: text to ids and back, in vLLM's shapes."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from aperto.harmony import FunctionTool, Role, render
from aperto.server.chat_messages import ConversationBuilder
from aperto.server.errors import ERROR_RESPONSES, ApiError
from aperto.server.legacy_logprobs import token_name
from aperto.server.pool import Lease
from aperto.server.services import Services, services
from aperto.server.sse import JsonResponse
from aperto.server.wire_completions import (
    Detokenized,
    DetokenizeRequest,
    Tokenized,
    TokenizeRequest,
)

_NAMED = {
    "bos_token": "<|startoftext|>",
    "eos_token": "<|return|>",
    "pad_token": "<|endoftext|>",
}

router = APIRouter(tags=["tokens"], responses=ERROR_RESPONSES)


@router.post("/tokenize", response_model=Tokenized)
async def tokenize(
    body: TokenizeRequest, served: Annotated[Services, Depends(services)]
) -> Response:
    """Give the token ids of a text, or of a conversation as the model reads it."""
    async with served.pool.lease(body.model) as lease:
        ids = await asyncio.to_thread(_ids, body, lease, served)
        found = {
            "count": len(ids),
            "max_model_len": lease.engine.limit_tokens,
            "tokens": ids,
            "token_strs": None,
        }
        if body.return_token_strs:
            found["token_strs"] = [token_name(lease.model.tokenizer, i) for i in ids]
    return JsonResponse(found)


@router.post("/detokenize", response_model=Detokenized)
async def detokenize(
    body: DetokenizeRequest, served: Annotated[Services, Depends(services)]
) -> Response:
    """Give the text of token ids; special tokens show up by name."""
    async with served.pool.lease(body.model) as lease:
        text = await asyncio.to_thread(lease.model.tokenizer.decode, body.tokens)
    return JsonResponse({"prompt": text})


@router.get("/tokenizer_info")
async def tokenizer_info(served: Annotated[Services, Depends(services)]) -> dict[str, Any]:
    """Name the special tokens that harnesses ask for; of the first model, as all have them."""
    async with served.pool.lease(None) as lease:
        special = lease.model.tokenizer.special
        limit = lease.engine.limit_tokens
    named = {kind: name for kind, name in _NAMED.items() if name in special}
    return {**named, "model_max_length": limit, "special_tokens": dict(special)}


def _ids(body: TokenizeRequest, lease: Lease, served: Services) -> list[int]:
    tokenizer = lease.model.tokenizer
    if body.messages is None:
        if body.prompt is None:
            raise ApiError(400, "there is neither prompt nor messages; expected one of them")
        if body.prompt in tokenizer.special:  # how harnesses ask for the id of a name
            return [tokenizer.special[body.prompt]]
        return tokenizer.encode(body.prompt)
    tools = [
        FunctionTool(t.function.name, t.function.description or "", t.function.parameters)
        for t in body.tools or ()
        if t.function is not None
    ]
    conversation = ConversationBuilder(served.recall, []).build(body.messages, tools)
    next_role = Role.ASSISTANT if body.add_generation_prompt else None
    return render(conversation, tokenizer, history="ended", next_role=next_role)
