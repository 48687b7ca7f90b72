"""LangChain's ChatOpenAI: a tool loop, a forced call, a schema, a stream; prints JSON."""

import json
import sys

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Recipe(BaseModel):
    """What is answered by schema."""

    bread: str
    salt_g: int


@tool
def look_up(bread: str) -> str:
    """Salt of a bread."""
    return f"{bread}: 12 g of salt"


def main(url, api):
    """Ask one thing after the other."""
    model = ChatOpenAI(
        model="scripted",
        base_url=url,
        api_key="none",
        use_responses_api=api == "responses",
        max_retries=0,
        reasoning_effort="low",
        stream_usage=True,
    )
    tools = model.bind_tools([look_up])
    messages = [HumanMessage("How much salt is in a rye bread?")]
    asked = tools.invoke(messages)
    (call,) = asked.tool_calls
    messages += [asked, ToolMessage(look_up.invoke(call["args"]), tool_call_id=call["id"])]
    answer = tools.invoke(messages)
    forced = model.bind_tools([look_up], tool_choice="look_up").invoke("And in a roll?")
    typed = model.with_structured_output(Recipe, method="json_schema", strict=True)
    recipe = typed.invoke("As an object.")
    chunks = list(model.stream("Once more."))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    print(
        json.dumps(
            {
                "call": [call["name"], call["args"]],
                "answer": answer.text,
                "usage": answer.usage_metadata,
                "forced": [[c["name"], c["args"]] for c in forced.tool_calls],
                "recipe": recipe.model_dump(),
                "streamed": whole.text,
                "num_chunks": len(chunks),
                "stream_usage": whole.usage_metadata,
            }
        )
    )


main(*sys.argv[1:])
