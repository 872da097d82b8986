"""Structured output and tools of the official OpenAI client against a running server.

    python structured.py --base-url http://127.0.0.1:8000/v1          (needs openai)

Helpers are used as their documentation shows them; nothing is told that the server is another one.
"""

import argparse
import enum
import json
import typing

import openai
import pydantic

MODEL = "smollm2:135m"
ASK = [{"role": "user", "content": "Alice and Bob meet for a science fair on Friday."}]


class Event(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(max_length=30)
    day: enum.Enum("Day", {d: d for d in ("Monday", "Friday", "Sunday")})
    participants: list[typing.Annotated[str, pydantic.Field(max_length=12)]] = pydantic.Field(
        min_length=1, max_length=3)
    attendees: int = pydantic.Field(ge=1, le=99)


class GetWeather(pydantic.BaseModel):
    """Tells the weather of a city."""

    city: str = pydantic.Field(max_length=20)
    unit: enum.Enum("Unit", {"celsius": "celsius", "fahrenheit": "fahrenheit"})


TOOLS = [
    openai.pydantic_function_tool(GetWeather, name="get_weather"),
    {"type": "function", "function": {"name": "get_time", "parameters": {
        "type": "object", "properties": {"zone": {"type": "string", "maxLength": 10}}, "required": ["zone"]}}},
]


def parse(client):
    """chat.completions.parse with a pydantic model."""
    answer = client.chat.completions.parse(model=MODEL, messages=ASK, response_format=Event, temperature=0)
    event = answer.choices[0].message.parsed
    assert isinstance(event, Event), answer
    return event


def stream(client):
    """The streaming helper gives the same object."""
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, response_format=Event, temperature=0,
    ) as events:
        for _ in events:
            pass
        return events.get_final_completion().choices[0].message.parsed


def parsed_tool(client):
    """Tools from pydantic models, the arguments parsed by the client."""
    answer = client.chat.completions.parse(
        model=MODEL, messages=ASK, tools=TOOLS[:1], tool_choice="required", parallel_tool_calls=False, temperature=0)
    choice = answer.choices[0]
    assert choice.finish_reason == "tool_calls", answer
    (call,) = choice.message.tool_calls
    assert call.id and isinstance(call.function.parsed_arguments, GetWeather), call


def named_tool(client):
    """A named tool, whole and streamed, and the turn after it."""
    ask = dict(model=MODEL, messages=ASK, tools=TOOLS, temperature=0,
               tool_choice={"type": "function", "function": {"name": "get_time"}})
    message = client.chat.completions.create(**ask).choices[0].message
    (call,) = message.tool_calls
    assert message.content is None and call.function.name == "get_time"
    assert set(json.loads(call.function.arguments)) >= {"zone"}
    name, arguments, reasons = "", "", []
    for chunk in client.chat.completions.create(**ask, stream=True):
        choice = chunk.choices[0]
        reasons += [choice.finish_reason] if choice.finish_reason else []
        for part in choice.delta.tool_calls or []:
            assert part.index == 0 and (part.id is None) == (part.function.name is None)
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    assert (name, arguments, reasons) == ("get_time", call.function.arguments, ["tool_calls"])
    history = ASK + [message.model_dump(exclude_none=True)]
    history += [{"role": "tool", "tool_call_id": call.id, "content": "12:00"}]
    after = client.chat.completions.create(
        model=MODEL, messages=history, tools=TOOLS, temperature=0, max_tokens=40)
    assert after.choices[0].finish_reason in ("stop", "length", "tool_calls")


def tools_and_format(client):
    """Tools beside a response format: calls, or what the format says."""
    for choice in ("auto", "none", "required"):
        answer = client.chat.completions.parse(
            model=MODEL, messages=ASK, tools=TOOLS[:1], tool_choice=choice, response_format=Event,
            temperature=0)
        message = answer.choices[0].message
        if message.tool_calls:
            assert choice != "none" and message.content is None, answer
            assert isinstance(message.tool_calls[0].function.parsed_arguments, GetWeather), answer
        else:
            assert choice != "required" and isinstance(message.parsed, Event), answer


def json_mode(client):
    answer = client.chat.completions.create(
        model=MODEL, messages=ASK, response_format={"type": "json_object"}, temperature=0, max_tokens=300)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)


def extra_bodies(client):
    """What vLLM's, SGLang's and llama.cpp's users send."""
    def text(**body):
        answer = client.chat.completions.create(
            model=MODEL, messages=ASK, temperature=0, max_tokens=60, extra_body=body)
        assert answer.choices[0].finish_reason == "stop", answer
        return answer.choices[0].message.content

    assert text(structured_outputs={"choice": ["yes", "no"]}) in ("yes", "no")
    assert text(guided_choice=["yes", "no"]) in ("yes", "no")
    assert text(guided_regex="[ab]{3}").strip("ab") == ""
    assert text(regex="[0-9]{4}").isdigit()
    assert text(ebnf='root ::= "a" | "b"') in ("a", "b")
    assert text(grammar='root ::= [xy] "z"') in ("xz", "yz")
    assert json.loads(text(json_schema='{"enum": [1, 2]}')) in (1, 2)
    assert json.loads(text(guided_json={"const": {"a": None}})) == {"a": None}


def refusals(client):
    def refused(param, **body):
        try:
            client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=5, extra_body=body)
        except openai.BadRequestError as error:
            assert error.body["param"] == param, error.body
            return error.body["message"]
        raise AssertionError(f"{body} was accepted")

    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": r"(x)\1"}}}
    message = refused("guided_json", guided_json=schema)
    assert "#/properties/a" in message and "pattern" in message, message
    refused("regex", regex="(", )
    refused("regex", regex="a", guided_json={})
    refused("grammar", grammar="root ::= other")
    open_schema = {"name": "x", "strict": True, "schema": {"type": "object", "properties": {}}}
    refused("response_format.json_schema.schema", response_format={
        "type": "json_schema", "json_schema": open_schema})


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = openai.OpenAI(base_url=parser.parse_args().base_url, api_key="none", max_retries=0, timeout=120)
    assert parse(client) == stream(client), "a stream says what a whole answer says"
    parsed_tool(client)
    named_tool(client)
    tools_and_format(client)
    json_mode(client)
    extra_bodies(client)
    refusals(client)
    print("openai", openai.__version__, "structured outputs and tools as expected")


main()
