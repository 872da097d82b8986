"""The official OpenAI client's responses against a running server.

    python responses_client.py --base-url http://127.0.0.1:8000/v1          (needs openai)

Whole and streamed, a conversation by previous_response_id, tools, parsed output, background, what is kept.
"""

import argparse
import time

import openai
import pydantic

MODEL = "smollm2:135m"
ASK = "Name one colour."
WEATHER = {
    "type": "function", "name": "get_weather", "description": "Tells the weather of a city.", "strict": True,
    "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}},
                   "required": ["city"], "additionalProperties": False},
}


class Colour(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(max_length=12)
    warm: bool


def whole_and_streamed(client):
    asked = {"model": MODEL, "input": ASK, "instructions": "Be short.", "temperature": 0.0,
             "max_output_tokens": 100}
    answer = client.responses.create(**asked)
    assert answer.status in ("completed", "incomplete") and answer.output_text, answer
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    with client.responses.stream(**asked) as stream:
        events = list(stream)
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == answer.output_text, "a stream says what a whole answer says"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].response.output_text == text
    counted = client.responses.input_tokens.count(model=MODEL, input=ASK, instructions="Be short.")
    assert counted.input_tokens == answer.usage.input_tokens


def conversation(client):
    response = client.responses.create(model=MODEL, input="Name three rivers of Europe.", max_output_tokens=40)
    cached = 0
    for question in ("Which of them is the longest?", "Which countries does it cross?"):
        n_before = response.usage.input_tokens
        response = client.responses.create(
            model=MODEL, input=question, previous_response_id=response.id, max_output_tokens=40)
        found = response.usage.input_tokens_details.cached_tokens
        assert found > cached and found >= n_before - 1, (found, cached, n_before)
        cached = found
    assert client.responses.retrieve(response.id).output_text == response.output_text
    items = list(client.responses.input_items.list(response.id, order="asc", limit=2))
    assert len(items) == 5 and items[0].content[0].text == "Name three rivers of Europe."
    client.responses.delete(response.id)
    try:
        client.responses.retrieve(response.id)
    except openai.NotFoundError:
        return
    raise AssertionError("a response that was deleted is still there")


def tools(client):
    asked = {"model": MODEL, "tools": [WEATHER], "max_output_tokens": 60}
    response = client.responses.create(**asked, input="What is the weather in Paris?", tool_choice="required")
    call = response.output[-1]
    assert call.type == "function_call" and call.name == "get_weather", response.output
    with client.responses.stream(**asked, input="What is the weather?", tool_choice="required") as stream:
        kinds = [event.type for event in stream]
    assert "response.function_call_arguments.done" in kinds
    told = client.responses.create(
        **asked, tool_choice="none", previous_response_id=response.id,
        input=[{"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees and sunny"}])
    assert told.output_text
    replayed = [{"role": "user", "content": "What is the weather in Paris?"}, *response.output,
                {"type": "function_call_output", "call_id": call.call_id, "output": "22 degrees"}]
    assert client.responses.create(**asked, tool_choice="none", input=replayed, store=False).output_text


def formats(client):
    parsed = client.responses.parse(model=MODEL, input=ASK, text_format=Colour, max_output_tokens=60)
    assert isinstance(parsed.output_parsed, Colour)


def background(client):
    response = client.responses.create(model=MODEL, input=ASK, background=True, max_output_tokens=16)
    for _ in range(600):
        if response.status != "in_progress":
            break
        time.sleep(0.1)
        response = client.responses.retrieve(response.id)
    assert response.status in ("completed", "incomplete") and response.output_text
    long = client.responses.create(model=MODEL, input="Tell me everything.", background=True)
    assert client.responses.cancel(long.id).status in ("cancelled", "completed", "incomplete")


def errors(client):
    for error, more in (
        (openai.BadRequestError, {"input": []}),
        (openai.BadRequestError, {"input": ASK, "tools": [{"type": "web_search"}]}),
        (openai.NotFoundError, {"input": ASK, "previous_response_id": "resp_none"}),
        (openai.NotFoundError, {"input": ASK, "model": "no-such-model"}),
    ):
        try:
            client.responses.create(**{"model": MODEL, **more})
        except error as found:
            assert found.body["message"] and set(found.body) >= {"message", "type", "param", "code"}, found.body
            continue
        raise AssertionError(f"{error.__name__} was expected of {more}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = openai.OpenAI(base_url=parser.parse_args().base_url, api_key="none", max_retries=0, timeout=120)
    for check in (whole_and_streamed, conversation, tools, formats, background, errors):
        check(client)
    print("openai", openai.__version__, "all responses as expected")


main()
