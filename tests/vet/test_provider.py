from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelCall,
    ModelOutput,
)
from inspect_ai.tool import ToolCall, ToolFunction, ToolInfo, ToolParams

import aperto
from aperto.errors import UsageError
from aperto.harmony import Role
from aperto.local_model import LocalModel
from aperto.vet.provider import ApertoAPI, Opened, answer, ids_hash
from aperto.vet.turns import conversation_of, rules_of, stop_reason

BAKE = ToolInfo(
    name="bake",
    description="Bake bread.",
    parameters=ToolParams.model_validate(
        {"properties": {"loaves": {"type": "integer"}}, "required": ["loaves"]}
    ),
)
SUM = [ChatMessageUser(content="What is 2 + 2?")]


@pytest.fixture(scope="module")
def nano() -> Iterator[LocalModel]:
    with aperto.load("nano", threads=1, context=2048) as model:
        yield model


def ask(
    model: LocalModel,
    messages: Sequence[ChatMessage] = SUM,
    tools: Sequence[ToolInfo] = (),
    choice: Any = "auto",
    **config: Any,
) -> tuple[ModelOutput, ModelCall]:
    settings = GenerateConfig(**({"seed": 1, "max_tokens": 256} | config))
    return asyncio.run(answer(model, "nano", messages, tools, choice, settings))


def test_an_answer_is_the_engines_own_with_its_channels_apart(nano: LocalModel) -> None:
    output, call = ask(nano, seed=5)
    own = nano.chat("What is 2 + 2?", seed=5, max_tokens=256, effort="medium", logprobs=True)
    (choice,) = output.choices
    thought = [p.reasoning for p in choice.message.content if isinstance(p, ContentReasoning)]
    assert output.completion == own.text and "".join(thought) == own.reasoning
    assert own.reasoning, "the model reasons before it answers"
    assert call.response is not None
    assert call.response["token_ids"] == [one.token.id for one in own.logprobs]
    assert output.metadata is not None and output.metadata["repairs"] == len(own.repairs)
    assert output.metadata["tokens_sha256"] == ids_hash([t.token.id for t in own.logprobs])
    usage = output.usage
    assert usage is not None and usage.output_tokens == own.usage.completion_tokens
    assert usage.input_tokens + (usage.input_tokens_cache_read or 0) == own.usage.prompt_tokens
    assert usage.reasoning_tokens == own.done.reasoning_tokens > 0


def test_why_it_ended_is_told_truly(nano: LocalModel) -> None:
    assert ask(nano)[0].stop_reason == "stop"
    assert ask(nano, max_tokens=2)[0].stop_reason == "max_tokens"
    prompt = [ChatMessageUser(content="bread " * 1000)]
    held = nano.engine.limit_tokens - int(str(ask(nano, prompt)[1].request["prompt_tokens"]))
    assert held > 0
    longest = ask(nano, prompt, max_tokens=100_000, logit_bias=dict.fromkeys(_stops(nano), -1e9))
    assert longest[0].stop_reason == "model_length"
    too_long, call = ask(nano, [ChatMessageUser(content="bread " * 5000)])
    assert too_long.stop_reason == "model_length" and too_long.completion == ""
    assert too_long.error is not None and call.response == {"error": too_long.error}
    assert stop_reason("cancelled", capped=False) == "unknown"


def _stops(model: LocalModel) -> list[int]:
    return [
        model.tokenizer.special_id(name)
        for name in ("<|return|>", "<|call|>", "<|endoftext|>", "<|start|>")
    ]


def test_the_seed_is_used_or_drawn_and_logged(nano: LocalModel) -> None:
    output, call = ask(nano, seed=None)
    assert output.metadata is not None and call.response is not None
    again, same = ask(nano, seed=output.metadata["seed"])
    assert same.response == call.response and again.completion == output.completion
    assert call.request["sampling"]["seed"] == output.metadata["seed"]  # type: ignore[call-overload,index]


def test_effort_goes_into_the_prompt_and_none_leaves_reasoning_out(nano: LocalModel) -> None:
    prompts = {
        effort: ask(nano, reasoning_effort=effort)[1].request["prompt_sha256"]
        for effort in ("minimal", "low", "medium", "high", "max")
    }
    assert prompts["minimal"] == prompts["low"] != prompts["medium"]
    assert prompts["max"] == prompts["high"] != prompts["medium"]
    output, _ = ask(nano, reasoning_effort="none")
    assert output.completion and output.usage is not None and output.usage.reasoning_tokens == 0


def test_a_call_that_must_be_made_is_read(nano: LocalModel) -> None:
    output, call = ask(
        nano, tools=[BAKE], choice=ToolFunction(name="bake"), parallel_tool_calls=False
    )
    assert output.stop_reason == "tool_calls" and call.response is not None
    (made,) = output.message.tool_calls or []
    assert made.function == "bake" and made.parse_error is None
    assert isinstance(made.arguments["loaves"], int)
    assert ask(nano, tools=[BAKE], choice="none")[1].request == ask(nano)[1].request


def test_logprobs_are_those_of_the_tokens(nano: LocalModel) -> None:
    output, call = ask(nano, logprobs=True, top_logprobs=2)
    logprobs = output.choices[0].logprobs
    assert logprobs is not None and call.response is not None
    ids = call.response["token_ids"]
    assert isinstance(ids, list) and len(logprobs.content) == len(ids)
    for token_id, one in zip(ids, logprobs.content, strict=True):
        assert bytes(one.bytes or []) == nano.tokenizer.decode_bytes([int(str(token_id))])
        assert one.logprob <= 0.0 and one.top_logprobs and len(one.top_logprobs) == 2
        assert one.logprob <= one.top_logprobs[0].logprob
    assert ask(nano)[0].choices[0].logprobs is None


def test_levels_history_and_tools_become_harmonys_messages() -> None:
    turned = conversation_of(
        [
            ChatMessageSystem(content="Guard it.", metadata={"level": "system"}),
            ChatMessageSystem(content="Be brief.", metadata={"level": "developer"}),
            ChatMessageUser(content="Two loaves."),
            ChatMessageAssistant(
                content=[ContentReasoning(reasoning="I bake."), ContentText(text="One moment.")],
                tool_calls=[ToolCall(id="1", function="bake", arguments={"loaves": 2})],
            ),
            ChatMessageTool(content="done", function="bake", tool_call_id="1"),
            ChatMessageAssistant(content="Here they are."),
            ChatMessageUser(content="Thanks."),
        ],
        [BAKE],
    )
    said = [(m.role, m.channel, m.recipient, m.text) for m in turned.messages[2:]]
    assert said == [
        (Role.USER, None, None, "Two loaves."),
        (Role.ASSISTANT, "analysis", None, "I bake."),
        (Role.ASSISTANT, "commentary", None, "One moment."),
        (Role.ASSISTANT, "commentary", "functions.bake", '{"loaves": 2}'),
        (Role.TOOL, "commentary", "assistant", "done"),
        (Role.ASSISTANT, "final", None, "Here they are."),
        (Role.USER, None, None, "Thanks."),
    ]
    head, second = (m.content for m in turned.messages[:2])
    assert str(head.identity).endswith("\nGuard it.")  # type: ignore[union-attr]
    assert second.instructions == "Be brief."  # type: ignore[union-attr]
    assert [tool.name for tool in second.tools] == ["bake"]  # type: ignore[union-attr]


def test_what_is_not_understood_is_refused(nano: LocalModel) -> None:
    image = ChatMessageUser(content=[ContentImage(image="data:image/png;base64,")])
    with pytest.raises(UsageError, match="image; expected text"):
        conversation_of([image], [])
    with pytest.raises(UsageError, match="num_choices is 2"):
        ask(nano, num_choices=2)
    with pytest.raises(UsageError, match="unknown model arguments speed"):
        ApertoAPI("nano", speed=3)


def test_names_with_adapters() -> None:
    assert Opened.named("nano") == Opened("nano")
    named = Opened.named("nano:desk=runs/desk", threads=2)
    assert (named.name, str(named.adapter), named.threads) == ("nano", "runs/desk", 2)
    assert Opened.named("nano", adapter="x").adapter == Opened.named("nano:a=x").adapter


def test_rules_hold_only_where_something_must_be() -> None:
    assert rules_of([BAKE], "auto", reasoning=True) is None
    must = rules_of([BAKE], "any", reasoning=True)
    assert must is not None and must.tool_choice == "required"
    free = rules_of([BAKE], "auto", reasoning=False)
    assert free is not None and free.tool_choice == "auto" and not free.reasoning
