"""Ollama's official client, and LangChain's, against a running server.

    python ollama_client.py --base-url http://127.0.0.1:8000          (needs ollama, langchain-ollama)

Chats and texts, whole and streamed, formats, tools, contexts, log-probabilities, models, errors.
"""

import argparse

import ollama
import pydantic
from langchain_ollama import ChatOllama

MODEL = "smollm2:135m"
ASK = [{"role": "user", "content": "Name one colour."}]
SHORT = {"temperature": 0, "num_predict": 16}


class Colour(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=12)
    warm: bool


def get_weather(city: str) -> str:
    """Tells the weather of a city.

    Args:
        city: The city.
    """
    return f"22 degrees in {city}"


def chats(client):
    whole = client.chat(MODEL, messages=ASK, options=SHORT)
    assert whole.message.role == "assistant" and whole.message.content and whole.done
    assert whole.done_reason in ("stop", "length") and whole.eval_count <= 16
    assert 0 < whole.prompt_eval_duration + whole.eval_duration <= whole.total_duration, whole
    parts = list(client.chat(MODEL, messages=ASK, options=SHORT, stream=True))
    # What was written before may come in one piece.
    assert len(parts) >= 2 and [bool(part.done) for part in parts].count(True) == 1, parts
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert parts[-1].eval_count == whole.eval_count and parts[-1].prompt_eval_count == whole.prompt_eval_count
    scored = client.chat(MODEL, messages=ASK, options=SHORT, logprobs=True, top_logprobs=2)
    assert len(scored.logprobs[0].top_logprobs) == 2 and scored.logprobs[0].logprob <= 0


def texts(client):
    first = client.generate(MODEL, prompt="My name is Ada.", options=SHORT)
    assert first.response and first.context
    second = client.generate(MODEL, prompt="What is my name?", context=first.context, options=SHORT)
    assert second.prompt_eval_count > len(first.context) and second.response
    raw = client.generate(MODEL, prompt="Once upon a time", raw=True, options=SHORT)
    parts = client.generate(MODEL, prompt="Once upon a time", raw=True, options=SHORT, stream=True)
    assert "".join(part.response for part in parts) == raw.response
    stopped = client.generate(MODEL, prompt="Count: one, two, three", raw=True,
                              options={**SHORT, "num_predict": 60, "stop": [" ", "e"]})
    assert stopped.done_reason == "stop" and " " not in stopped.response


def formats_and_tools(client):
    answer = client.chat(MODEL, messages=ASK, format=Colour.model_json_schema(), options={"num_predict": 400})
    Colour.model_validate_json(answer.message.content)
    answer = client.generate(MODEL, prompt="A person as JSON:", format="json", options=SHORT)
    assert answer.response.lstrip().startswith("{"), answer.response
    called = client.chat(MODEL, messages=[{"role": "user", "content": "What is the weather in Rome?"}],
                         tools=[get_weather], options={"temperature": 0, "num_predict": 100})
    for call in called.message.tool_calls or []:
        assert call.function.name == "get_weather" and isinstance(call.function.arguments, dict)
    turns = [*ASK, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "get_weather", "arguments": {"city": "Rome"}}}]},
        {"role": "tool", "tool_name": "get_weather", "content": "22 degrees"}]
    assert client.chat(MODEL, messages=turns, tools=[get_weather], options=SHORT).done


def models(client):
    assert [model.model for model in client.list().models] == [MODEL]
    assert [model.model for model in client.ps().models] == [MODEL]
    assert "completion" in client.show(MODEL).capabilities
    assert client.pull(MODEL).status == "success"
    assert [part.status for part in client.pull(MODEL, stream=True)] == ["success"]
    assert client.generate(MODEL).done_reason == "load"


def refused(status, call):
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status and error.error, error
        return
    raise AssertionError(f"{status} was expected")


def errors(client):
    refused(404, lambda: client.chat("no-such-model", messages=ASK))
    refused(404, lambda: client.pull("no-such-model"))
    refused(404, lambda: client.delete(MODEL))
    refused(404, lambda: client.copy(MODEL, "other"))
    refused(400, lambda: client.chat(MODEL, messages=ASK, options={"mirostat": 2}))
    refused(400, lambda: client.chat(MODEL, messages=ASK, think=True))
    refused(400, lambda: client.generate(MODEL, prompt="x", images=["eA=="]))
    refused(400, lambda: client.embed(MODEL, input="x"))


def langchain(url):
    model = ChatOllama(model=MODEL, base_url=url, temperature=0, num_predict=16)
    whole = model.invoke("Name one colour.")
    assert whole.content and whole.response_metadata["done"], whole
    assert whole.usage_metadata["output_tokens"] <= 16
    assert "".join(part.content for part in model.stream("Name one colour.")) == whole.content
    typed = ChatOllama(model=MODEL, base_url=url, num_predict=400).with_structured_output(Colour, method="json_schema")
    assert isinstance(typed.invoke("Name one colour."), Colour)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    url = parser.parse_args().base_url
    client = ollama.Client(host=url, timeout=120)
    chats(client)
    texts(client)
    formats_and_tools(client)
    models(client)
    errors(client)
    langchain(url)
    print("ollama: all calls answered as expected")


main()
