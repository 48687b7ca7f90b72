"""Inspect AI's openai-api provider: one task with a tool, one by schema; prints JSON."""

import json
import sys

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import json_schema
from pydantic import BaseModel


class Sum(BaseModel):
    """What is answered by schema."""

    digit: int


@tool
def add():
    """Adds."""

    async def execute(x: int, y: int) -> str:
        """Add two numbers.

        Args:
            x: one
            y: the other
        """
        return str(x + y)

    return execute


def main(url, responses, stream):
    """Run both tasks on the model "scripted"."""
    model = get_model(
        "openai-api/aperto/scripted",
        base_url=url,
        api_key="none",
        responses_api=responses == "responses",
        stream=stream == "stream",
    )
    schema = ResponseSchema(name="sum", json_schema=json_schema(Sum), strict=True)
    tasks = [
        Task(
            name="tool",
            dataset=[Sample("What is 17 + 25?", target="42")],
            solver=[use_tools(add()), generate()],
            scorer=includes(),
            config=GenerateConfig(reasoning_effort="low", max_tokens=200),
        ),
        Task(
            name="schema",
            dataset=[Sample("What is 3 + 4?", target="7")],
            solver=[generate()],
            scorer=includes(),
            config=GenerateConfig(response_schema=schema, reasoning_effort="high"),
        ),
    ]
    found = {}
    for task in tasks:
        (log,) = eval(task, model=model, display="none", log_dir="logs")
        sample = log.samples[0] if log.samples else None
        found[task.name] = {
            "status": log.status,
            "error": str(log.error or (sample and sample.error)),
            "score": sample and sample.scores and sample.scores["includes"].value,
            "roles": sample and [message.role for message in sample.messages],
            "reasoning": sample
            and [
                part.summary if part.redacted else part.reasoning
                for message in sample.messages
                if message.role == "assistant" and isinstance(message.content, list)
                for part in message.content
                if part.type == "reasoning"
            ],
            "usage": sample and [usage.model_dump() for usage in sample.model_usage.values()],
        }
    print(json.dumps(found))


main(*sys.argv[1:])
