"""Two openai-agents with a handoff, through Responses or Chat, streamed or not; prints JSON."""

import asyncio
import json
import sys

from agents import (
    Agent,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel


class Recipe(BaseModel):
    """What the second agent answers."""

    bread: str
    salt_g: int


@function_tool
def look_up(bread: str) -> str:
    """Salt of a bread."""
    return f"{bread}: 12 g of salt"


async def main(url: str, api: str, way: str) -> None:
    """Run them and say what happened."""
    set_tracing_disabled(True)
    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    kinds = {"responses": OpenAIResponsesModel, "chat": OpenAIChatCompletionsModel}
    model = kinds[api]("scripted", client)
    baker = Agent(
        name="Baker",
        handoff_description="Knows recipes",
        instructions="Look the bread up.",
        tools=[look_up],
        output_type=Recipe,
        model=model,
    )
    clerk = Agent(
        name="Clerk", instructions="Hand bakers' questions on.", handoffs=[baker], model=model
    )
    kinds_seen = []
    if way == "stream":
        result = Runner.run_streamed(clerk, "How much salt is in a rye bread?")
        async for event in result.stream_events():
            if event.type == "run_item_stream_event":
                kinds_seen.append(event.name)
    else:
        result = await Runner.run(clerk, "How much salt is in a rye bread?")
    print(
        json.dumps(
            {
                "last": result.last_agent.name,
                "output": result.final_output.model_dump(),
                "items": [item.type for item in result.new_items],
                "events": kinds_seen,
            }
        )
    )


asyncio.run(main(*sys.argv[1:]))
