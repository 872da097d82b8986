"""The official Anthropic client against a running server.

    python anthropic_client.py --base-url http://127.0.0.1:8000          (needs anthropic)

Messages whole and streamed, tools, structured outputs, stop sequences, token counts, the prefix cache,
models, errors.
"""

import argparse
import json
import typing
import uuid

import anthropic
import pydantic

MODEL = "smollm2:135m"
ASK = [{"role": "user", "content": "Name one colour."}]
WEATHER = {
    "name": "get_weather", "description": "Tells the weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}},
                     "required": ["city"], "additionalProperties": False},
}


class Colour(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    warm: bool


# The client tells the model of lengths in words only.
class Named(pydantic.BaseModel):
    name: typing.Literal["red", "blue", "green"]
    warm: bool


def whole_and_streamed(client):
    asked = {"model": MODEL, "max_tokens": 16, "messages": ASK, "system": "Be short.",
             "extra_body": {"temperature": 0}}
    answer = client.messages.create(**asked)
    assert answer.type == "message" and answer.role == "assistant" and answer.id.startswith("msg_")
    assert answer.stop_reason in ("end_turn", "max_tokens") and answer.content[0].text
    assert answer._request_id
    with client.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == answer.content[0].text, "a stream says what a whole answer says"
    assert final.stop_reason == answer.stop_reason
    assert final.usage.output_tokens == answer.usage.output_tokens
    kinds = [event.type for event in client.messages.create(**asked, stream=True)]
    assert kinds[:2] == ["message_start", "content_block_start"], kinds
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"], kinds
    counted = client.messages.count_tokens(model=MODEL, messages=ASK, system="Be short.")
    usage = final.usage
    n_prompt = usage.input_tokens + usage.cache_read_input_tokens + usage.cache_creation_input_tokens
    assert counted.input_tokens == n_prompt, (counted, usage)


def cache(client):
    # No earlier run of this has been here.
    text = f"{uuid.uuid4()} " + "You answer questions about the rivers and mountains of Europe. " * 20
    system = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}}]

    def ask(question):
        return client.messages.create(model=MODEL, max_tokens=8, system=system,
                                      messages=[{"role": "user", "content": question}]).usage

    first, second = ask("Which is the longest river?"), ask("Which is the highest mountain?")
    assert first.cache_creation_input_tokens > 200 and first.cache_read_input_tokens < 20, first
    assert second.cache_read_input_tokens > 200, second


def tools(client):
    asked = [{"role": "user", "content": "What is the weather in Paris?"}]
    create = {"model": MODEL, "max_tokens": 100, "tools": [WEATHER]}
    choice = {"type": "tool", "name": "get_weather"}
    answer = client.messages.create(**create, messages=asked, tool_choice=choice)
    assert answer.stop_reason == "tool_use", answer
    call = answer.content[-1]
    assert call.name == "get_weather" and call.input["city"] in ("Paris", "Rome")
    with client.messages.stream(**create, messages=asked, tool_choice={"type": "any"}) as stream:
        inputs = [event.snapshot for event in stream if event.type == "input_json"]
        streamed = stream.get_final_message().content[-1]
    assert inputs and streamed.input["city"] in ("Paris", "Rome")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "22 degrees and sunny"}
    turns = [*asked, {"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    told = client.messages.create(**create, messages=turns, tool_choice={"type": "none"})
    assert told.content[0].type == "text" and told.content[0].text
    silent = client.messages.create(**create, messages=turns)
    assert silent.stop_reason in ("end_turn", "max_tokens", "tool_use")


def formats(client):
    answer = client.messages.create(
        model=MODEL, max_tokens=60, messages=ASK,
        output_config={"format": {"type": "json_schema", "schema": Colour.model_json_schema()}})
    Colour.model_validate(json.loads(answer.content[0].text))
    parsed = client.messages.parse(model=MODEL, max_tokens=60, messages=ASK, output_format=Named)
    assert isinstance(parsed.parsed_output, Named)
    counting = [{"role": "user", "content": "Count: one, two, three, four, five"}]
    stopped = client.messages.create(model=MODEL, max_tokens=60, messages=counting, stop_sequences=[" ", "e"])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence in (" ", "e"), stopped
    begun = [*ASK, {"role": "assistant", "content": "One colour is"}]
    assert client.messages.create(model=MODEL, max_tokens=8, messages=begun).content[0].text


def refused(error, kind, call):
    try:
        call()
    except error as found:
        assert found.body["type"] == "error" and found.body["error"]["type"] == kind, found.body
        assert found.body["error"]["message"] and found.request_id
        return
    raise AssertionError(f"{error.__name__} was expected")


def errors(client):
    create = client.messages.create
    refused(anthropic.BadRequestError, "invalid_request_error",
            lambda: create(model=MODEL, max_tokens=5, messages=[]))
    refused(anthropic.NotFoundError, "not_found_error",
            lambda: create(model="no-such-model", max_tokens=5, messages=ASK))
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "eA=="}}
    refused(anthropic.BadRequestError, "invalid_request_error",
            lambda: create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": [image]}]))
    refused(anthropic.BadRequestError, "invalid_request_error",
            lambda: create(model=MODEL, max_tokens=5, messages=[{"role": "user", "content": "long " * 20_000}]))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = anthropic.Anthropic(
        base_url=parser.parse_args().base_url, api_key="none", max_retries=0, timeout=120)
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).display_name == MODEL
    cache(client)
    whole_and_streamed(client)
    tools(client)
    formats(client)
    errors(client)
    print("anthropic", anthropic.__version__, "all calls answered as expected")


main()
