"""An Inspect model whose answers are a function of the conversation; counts tokens offline."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    Model,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
    modelapi,
)
from inspect_ai.tool import ToolCall

Script = Callable[[list[ChatMessage]], ModelOutput]


@modelapi(name="scripted")
class ScriptedAPI(ModelAPI):
    """Answers as its script says."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        self._script: Script = arguments["script"]

    async def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> ModelOutput:
        return self._script(input)

    async def count_text_tokens(self, text: str) -> int:
        return len(text.split())


def scripted(script: Script) -> Model:
    return get_model("scripted/model", memoize=False, script=script)


def output(
    final: str, analysis: str = "", stop: Any = "stop", calls: list[ToolCall] | None = None
) -> ModelOutput:
    parts = [ContentReasoning(reasoning=analysis), ContentText(text=final)]
    message = ChatMessageAssistant(content=parts, tool_calls=calls)  # type: ignore[arg-type]
    usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
    choice = ChatCompletionChoice(message=message, stop_reason=stop)
    return ModelOutput(model="scripted", choices=[choice], usage=usage)
