"""The official OpenAI client against a running server.

    python openai_client.py --base-url http://127.0.0.1:8000/v1          (needs openai)

Chat, streaming with usage, completions, models, errors, an aborted stream, 32 streams at once.
"""

import argparse
import concurrent.futures

import openai

MODEL = "smollm2:135m"
MESSAGES = [{"role": "user", "content": "Name one colour."}]


def chat(client):
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=16, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    return choice.message.content


def stream_chat(client, seed=None, temperature=0.0):
    text, usages, reasons = "", [], []
    with client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=16, temperature=temperature, seed=seed, stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        for chunk in stream:
            if chunk.usage:
                usages.append(chunk.usage)
            for choice in chunk.choices:
                text += choice.delta.content or ""
                reasons += [choice.finish_reason] if choice.finish_reason else []
    assert len(usages) == 1 and usages[0].completion_tokens > 0
    assert len(reasons) == 1
    return text


def refused(error, call):
    try:
        call()
    except error as found:
        assert found.body["message"] and set(found.body) >= {"message", "type", "param", "code"}, found.body
        return
    raise AssertionError(f"{error.__name__} was expected")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = openai.OpenAI(base_url=parser.parse_args().base_url, api_key="none", max_retries=0, timeout=120)

    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).object == "model"
    whole = chat(client)
    assert stream_chat(client) == whole, "a stream says what a whole answer says"
    assert stream_chat(client, seed=7, temperature=1.0) == stream_chat(client, seed=7, temperature=1.0)
    completion = client.completions.create(model=MODEL, prompt="Once upon a time", max_tokens=8, temperature=0)
    assert completion.choices[0].text and completion.usage.completion_tokens <= 8

    create = client.chat.completions.create
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=MESSAGES, temperature=-1))
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=[]))
    refused(openai.BadRequestError, lambda: create(model=MODEL, messages=MESSAGES, max_tokens=10**9))
    refused(openai.NotFoundError, lambda: create(model="no-such-model", messages=MESSAGES))
    refused(openai.BadRequestError, lambda: create(
        model=MODEL, messages=MESSAGES, response_format={"type": "xml"}))

    with create(model=MODEL, messages=MESSAGES, max_tokens=500, stream=True) as stream:
        next(iter(stream))
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        texts = set(pool.map(lambda _: stream_chat(client), range(32)))
    assert texts == {whole}, "the same greedy answer in a crowd"
    print("openai", openai.__version__, "all calls answered as expected")


main()
