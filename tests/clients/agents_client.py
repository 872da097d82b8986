"""OpenAI's agents, which speak to /v1/responses by default, against a running server.

    python agents_client.py --base-url http://127.0.0.1:8000/v1          (needs openai-agents)

A typed answer whole and streamed, and a tool that is called before one.
"""

import argparse
import asyncio
import typing

import agents
import openai
import pydantic

MODEL = "smollm2:135m"
SHORT = agents.ModelSettings(max_tokens=200)


class Colour(pydantic.BaseModel):
    name: typing.Literal["red", "blue", "green"]
    warm: bool


calls = []


# Once: a small model that may call goes on calling.
@agents.function_tool(is_enabled=lambda context, agent: not calls)
def favourite(of: typing.Literal["Ann", "Bob"]) -> str:
    """Tells somebody's favourite colour."""
    calls.append(of)
    return f"{of} likes blue."


async def run():
    agent = agents.Agent(name="painter", instructions="Be short.", model=MODEL, output_type=Colour,
                         model_settings=SHORT)
    whole = await agents.Runner.run(agent, "Name one colour.")
    assert isinstance(whole.final_output, Colour)
    streamed = agents.Runner.run_streamed(agent, "Name one colour.")
    kinds = [event.type async for event in streamed.stream_events()]
    assert "raw_response_event" in kinds and isinstance(streamed.final_output, Colour)

    required = agents.ModelSettings(max_tokens=200, tool_choice="required", parallel_tool_calls=False)
    caller = agent.clone(tools=[favourite], model_settings=required)
    told = await agents.Runner.run(caller, "What does Ann like?", max_turns=5)
    items = [item.type for item in told.new_items]
    assert items[:2] == ["tool_call_item", "tool_call_output_item"], items
    assert isinstance(told.final_output, Colour)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = openai.AsyncOpenAI(base_url=parser.parse_args().base_url, api_key="none", timeout=120)
    agents.set_default_openai_client(client, use_for_tracing=False)
    agents.set_tracing_disabled(True)
    asyncio.run(run())
    print("openai-agents", agents.version.__version__, "all runs as expected")


main()
