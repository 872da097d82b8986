"""Every parameter of chat and text completions, sent by the official OpenAI client to a running server.

    python parameters.py --base-url http://127.0.0.1:8000/v1 [--server target/release/arbora]   (needs openai)

What a parameter does is told by limits and by what it must have in common with other requests, never by what
a small model knows. With --server a second server is started for a moment, one that wants a key.
"""

import argparse
import asyncio
import math
import socket
import subprocess
import time
import uuid

import openai

MODEL = "smollm2:135m"
ASK = [{"role": "user", "content": "Name one colour."}]
PROMPT = "Once upon a time"
REPEATS = "red red red red red red red red"


def chat(client, **given):
    ask = dict(model=MODEL, messages=ASK, temperature=0, max_tokens=16)
    return client.chat.completions.create(**{**ask, **given})


def text(client, **given):
    """The text of a chat's answer."""
    return chat(client, **given).choices[0].message.content


def complete(client, prompt=PROMPT, **given):
    ask = dict(model=MODEL, prompt=prompt, temperature=0, max_tokens=12)
    return client.completions.create(**{**ask, **given})


def tokenize(client, **body):
    """The ids of a text or of a chat, by a route that the client has no method for."""
    root = client.with_options(base_url=str(client.base_url).removesuffix("/").removesuffix("/v1"))
    return root.post("/tokenize", cast_to=object, body=body)["tokens"]


def one_token(client, word):
    (token,) = tokenize(client, prompt=word, add_special_tokens=False)
    return token


def same(found, expected, what):
    assert found == expected, f"{what}: {found!r} instead of {expected!r}"


def n(client):
    """Choices of one prompt, and of several."""
    for temperature, is_varied in ((1, True), (0, False)):
        answer = chat(client, n=3, temperature=temperature, seed=1)
        same([choice.index for choice in answer.choices], [0, 1, 2], "the order of choices")
        texts = {choice.message.content for choice in answer.choices}
        same(len(texts) > 1, is_varied, f"different choices at temperature {temperature}, {texts}")
        assert answer.usage.completion_tokens <= 3 * 16, answer.usage
        assert answer.usage.prompt_tokens == chat(client).usage.prompt_tokens, answer.usage
    answer = complete(client, prompt=[PROMPT, REPEATS], n=2)
    same([choice.index for choice in answer.choices], [0, 1, 2, 3], "the order of choices of two prompts")
    texts = [choice.text for choice in answer.choices]
    same(texts[0::2], texts[1::2], "greedy choices of the same prompts")
    streamed = {0: "", 1: "", 2: ""}
    for chunk in chat(client, n=3, temperature=1, seed=1, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    whole = [choice.message.content for choice in chat(client, n=3, temperature=1, seed=1).choices]
    same(list(streamed.values()), whole, "streamed choices")


def sampling(client):
    """seed, temperature, top_p, top_k, min_p."""
    greedy = text(client)
    hot = dict(temperature=1.5, max_tokens=24)
    same(text(client, seed=7, **hot), text(client, seed=7, **hot), "the same seed")
    assert len({text(client, seed=seed, **hot) for seed in (1, 2, 3)}) > 1, "all seeds give the same text"
    assert len({text(client, **hot) for _ in range(4)}) > 1, "requests without a seed give the same text"
    # The narrowest choice there is leaves the likeliest token only.
    for narrow in (dict(top_p=1e-6), dict(extra_body={"top_k": 1}), dict(extra_body={"min_p": 0.9999})):
        same(text(client, temperature=1.5, seed=7, **narrow), greedy, f"{narrow} at a high temperature")
    open_wide = dict(top_p=1, extra_body={"top_k": -1, "min_p": 0})
    same(text(client, seed=7, **hot, **open_wide), text(client, seed=7, **hot), "filters that filter nothing")


def lengths(client):
    """max_tokens, max_completion_tokens, min_tokens, ignore_eos."""
    def ended(reason, low, high, **given):
        answer = chat(client, **given)
        same(answer.choices[0].finish_reason, reason, f"finish_reason of {given}")
        assert low <= answer.usage.completion_tokens <= high, (given, answer.usage)
        return answer.choices[0].message.content

    eos = {str(one_token(client, "<|im_end|>")): 100}
    ended("length", 5, 5, max_tokens=5, extra_body={"ignore_eos": True})
    ended("length", 5, 5, max_tokens=openai.omit, max_completion_tokens=5, extra_body={"ignore_eos": True})
    ended("length", 9, 9, max_tokens=9, logit_bias=eos, extra_body={"ignore_eos": True})
    same(ended("stop", 1, 1, logit_bias=eos), "", "the text before an end that is forced at once")
    assert ended("stop", 7, 7, logit_bias=eos, extra_body={"min_tokens": 6}), "min_tokens gives no text"


def penalties(client):
    """A text that repeats itself does so less."""
    def n_red(**given):
        (choice,) = complete(client, prompt=REPEATS, max_tokens=24, logprobs=0, **given).choices
        return choice.logprobs.tokens.count(" red")

    plain = n_red()
    assert plain >= 4, f"the prompt is not repeated: {plain}"
    for given in (
        {"frequency_penalty": 2}, {"presence_penalty": 2}, {"extra_body": {"repetition_penalty": 2}},
    ):
        assert n_red(**given) < plain / 2, f"{given} changes {plain} into {n_red(**given)}"
    assert n_red(frequency_penalty=-2) >= plain, "a negative penalty does not favour what was said"


def logit_bias(client):
    """-100 bans a token, 100 forces it."""
    word = " blue"
    token = one_token(client, word)
    same(text(client, max_tokens=6, logit_bias={str(token): 100}), word * 6, "a forced token")
    same(complete(client, max_tokens=6, logit_bias={str(token): 100}).choices[0].text, word * 6, "the same")
    red = {str(one_token(client, " red")): -100}
    banned = complete(client, prompt=REPEATS, logit_bias=red, logprobs=0).choices[0].logprobs.tokens
    assert " red" not in banned and " red" in complete(client, prompt=REPEATS).choices[0].text, banned


def check_logprobs(rows, n_top, what):
    for row in rows:
        assert row.logprob <= 0, (what, row)
        same(len(row.top_logprobs), n_top, f"number of top_logprobs, {what}")
        values = [top.logprob for top in row.top_logprobs]
        same(values, sorted(values, reverse=True), f"order of top_logprobs, {what}")
        assert sum(map(math.exp, values)) < 1.001, (what, row)


def chat_logprobs(client):
    """logprobs and top_logprobs, whole and streamed."""
    ask = dict(logprobs=True, top_logprobs=3)
    answer = chat(client, **ask)
    (choice,) = answer.choices
    rows = choice.logprobs.content
    check_logprobs(rows, 3, "greedy")
    same(b"".join(bytes(row.bytes) for row in rows).decode(), choice.message.content, "joined bytes")
    same([row.token for row in rows], [row.top_logprobs[0].token for row in rows], "greedy tokens")
    assert len(rows) <= answer.usage.completion_tokens <= len(rows) + 1, (len(rows), answer.usage)
    streamed = []
    for chunk in chat(client, stream=True, **ask):
        for piece in chunk.choices:
            streamed += piece.logprobs.content if piece.logprobs else []
    same(streamed, rows, "streamed logprobs")
    hot = chat(client, temperature=2, seed=3, **ask).choices[0].logprobs.content
    check_logprobs(hot, 3, "hot")
    same(chat(client, logprobs=True).choices[0].logprobs.content[0].top_logprobs, [], "top_logprobs unasked for")
    same(chat(client).choices[0].logprobs, None, "logprobs unasked for")


def scores(client):
    """Completions' logprobs; echo with max_tokens=0 scores a text, and alike to its generation."""
    (said,) = complete(client, logprobs=2).choices
    rows = said.logprobs
    same("".join(rows.tokens), said.text, "joined tokens")
    same([said.text[at:][:len(token)] for at, token in zip(rows.text_offset, rows.tokens)], rows.tokens, "offsets")
    assert all(value <= 0 for value in rows.token_logprobs), rows
    for token, top in zip(rows.tokens, rows.top_logprobs):
        assert token in top and 2 <= len(top) <= 3, rows
    answer = complete(client, prompt=PROMPT + said.text, max_tokens=0, echo=True, logprobs=2)
    (score,) = answer.choices
    same(answer.usage.completion_tokens, 0, "tokens of an answer that only scores")
    same(score.text, PROMPT + said.text, "echo")
    same(score.logprobs.token_logprobs[0], None, "logprob of the first token")
    # A text need not be split as it was generated; up to there it is scored as it was.
    scored = list(zip(score.logprobs.tokens, score.logprobs.token_logprobs))[-len(rows.tokens):]
    pairs = list(zip(scored, rows.tokens, rows.token_logprobs))
    n_equal = next((i for i, (row, token, _) in enumerate(pairs) if row[0] != token), len(pairs))
    assert n_equal > 0, pairs
    for (token, value), _, generated in pairs[:n_equal]:
        assert abs(value - generated) < 1e-3, f"{token!r} is scored {value} and was generated at {generated}"
    (both,) = complete(client, echo=True, logprobs=0).choices
    same(both.text, PROMPT + said.text, "echo before an output")
    same("".join(both.logprobs.tokens), both.text, "tokens of both")


def prompt_logprobs(client):
    """Of a chat and of a completion, by token id."""
    ids = tokenize(client, prompt=PROMPT)
    (choice,) = complete(client, max_tokens=1, extra_body={"prompt_logprobs": 2}).choices
    chat_ids = tokenize(client, messages=ASK)
    answer = chat(client, max_tokens=1, extra_body={"prompt_logprobs": 2})
    for told, tokens in ((choice.prompt_logprobs, ids), (answer.prompt_logprobs, chat_ids)):
        same(len(told), len(tokens), "rows of prompt_logprobs")
        same(told[0], None, "the first row")
        for row, token in zip(told[1:], tokens[1:]):
            assert str(token) in row and 2 <= len(row) <= 3, (token, row)
            assert min(value["rank"] for value in row.values()) == 1, row


def stops(client):
    """stop as a string and as a list, whole and streamed; stop_token_ids."""
    plain = complete(client).choices[0].text
    piece = plain[9:13]
    before = plain[:plain.index(piece)]
    for stop in (piece, [piece], ["\x01\x01", piece, "\x02\x02"]):
        (choice,) = complete(client, stop=stop).choices
        same((choice.text, choice.finish_reason), (before, "stop"), f"stop={stop!r}")
        chunks = [chunk.choices[0] for chunk in complete(client, stop=stop, stream=True)]
        streamed = "".join(chunk.text for chunk in chunks)
        same((streamed, chunks[-1].finish_reason), (before, "stop"), f"stop={stop!r}, streamed")
    token = one_token(client, " blue")
    forced = dict(logit_bias={str(token): 100}, max_tokens=6)
    answer = chat(client, **forced, extra_body={"stop_token_ids": [token]})
    same((answer.choices[0].message.content, answer.choices[0].finish_reason), ("", "stop"), "stop_token_ids")


def stream(client):
    """Chunks with and without usage."""
    whole = chat(client)
    for options in (openai.omit, {"include_usage": True}):
        chunks = list(chat(client, stream=True, stream_options=options))
        same(len({chunk.id for chunk in chunks}), 1, "ids of one stream")
        same({chunk.object for chunk in chunks}, {"chat.completion.chunk"}, "object")
        same(chunks[0].choices[0].delta.role, "assistant", "the first role")
        joined = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        same(joined, whole.choices[0].message.content, "joined chunks")
        usages = [chunk.usage for chunk in chunks if chunk.usage]
        if options is openai.omit:
            same(usages, [], "usage nobody asked for")
            continue
        same(chunks[-1].choices, [], "choices beside the usage")
        same(len(usages), 1, "chunks with usage")
        same(usages[0].completion_tokens, whole.usage.completion_tokens, "streamed usage")


def prompts(client):
    """Token ids and lists are prompts too."""
    ids = tokenize(client, prompt=PROMPT)
    one, other = complete(client).choices[0].text, complete(client, prompt=REPEATS).choices[0].text
    same(complete(client, prompt=ids).choices[0].text, one, "a prompt of token ids")
    for several in ([PROMPT, REPEATS], [ids, tokenize(client, prompt=REPEATS)]):
        answer = complete(client, prompt=several)
        same([choice.text for choice in answer.choices], [one, other], "a list of prompts")
        assert answer.usage.prompt_tokens > len(ids), answer.usage


def extensions(client):
    """continue_final_message, chat_template_kwargs, cache_salt, priority, and labels without effect."""
    messages = ASK + [{"role": "assistant", "content": "The colour is"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = chat(client, messages=messages, extra_body=body)
    ids = tokenize(client, messages=messages, **body)
    same(answer.usage.prompt_tokens, len(ids), "prompt tokens of a continued message")
    closed = tokenize(client, messages=messages, add_generation_prompt=False)
    assert len(ids) < len(closed), "a continued message is closed"
    same(answer.choices[0].message.content, complete(client, prompt=ids, max_tokens=16).choices[0].text,
         "a continued message")
    plain = text(client)
    for given in (
        dict(user="someone"), dict(safety_identifier="someone"), dict(prompt_cache_key="key"),
        dict(extra_body={"priority": 5}), dict(extra_body={"priority": -5}),
        dict(extra_body={"chat_template_kwargs": {"enable_thinking": False}}),
    ):
        same(text(client, **given), plain, f"an answer with {given}")

    def n_cached(salt):
        answer = chat(client, messages=fresh, max_tokens=1, extra_body={"cache_salt": salt})
        return answer.usage.prompt_tokens_details.cached_tokens

    fresh = [{"role": "user", "content": f"{uuid.uuid4()} is a number."}]
    salts = [uuid.uuid4().hex, uuid.uuid4().hex]
    same(n_cached(salts[0]), 0, "cached tokens of a new salt")
    assert n_cached(salts[0]) > 0, "a salt's own tokens are not found again"
    same(n_cached(salts[1]), 0, "cached tokens of another's salt")


def models(client):
    same([model.id for model in client.models.list()], [MODEL], "models")
    model = client.models.retrieve(MODEL)
    same((model.id, model.object), (MODEL, "model"), "model")
    refused(openai.NotFoundError, None, lambda: client.models.retrieve("no-such-model"))


def refused(error, param, call):
    try:
        call()
    except error as found:
        assert set(found.body) >= {"message", "type", "param", "code"}, found.body
        assert found.request_id, "an error without a request id"
        if param:
            same(found.param, param, f"param of {found}")
            assert param in found.message, found.message
        return
    raise AssertionError(f"{error.__name__} about {param} was expected")


def errors(client):
    bad = openai.BadRequestError
    for given, param in (
        ({"temperature": -1}, "temperature"), ({"temperature": "warm"}, "temperature"), ({"top_p": 2}, "top_p"),
        ({"n": 0}, "n"), ({"n": 1000}, "n"), ({"max_tokens": -1}, "max_tokens"), ({"stop": 5}, "stop"),
        ({"presence_penalty": 9}, "presence_penalty"), ({"frequency_penalty": -9}, "frequency_penalty"),
        ({"logit_bias": {"x": 1}}, "logit_bias"), ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 99}, "top_logprobs"), ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"), ({"seed": "x"}, "seed"),
        ({"functions": [{"name": "x"}]}, "functions"), ({"audio": {"format": "wav", "voice": "alloy"}}, "audio"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"extra_body": {"min_p": -1}}, "min_p"), ({"extra_body": {"top_k": -2}}, "top_k"),
        ({"extra_body": {"repetition_penalty": 0}}, "repetition_penalty"),
        ({"extra_body": {"min_tokens": 99}}, "min_tokens"), ({"extra_body": {"priority": "high"}}, "priority"),
        ({"extra_body": {"stop_token_ids": ["x"]}}, "stop_token_ids[0]"),
        ({"extra_body": {"cache_salt": 5}}, "cache_salt"),
        ({"extra_body": {"chat_template_kwargs": {"shape": 1}}}, "chat_template_kwargs.shape"),
    ):
        refused(bad, param, lambda: chat(client, **given))
    refused(bad, "prompt", lambda: complete(client, prompt=[]))
    refused(bad, "best_of", lambda: complete(client, best_of=2))
    refused(bad, "suffix", lambda: complete(client, suffix="end"))
    refused(openai.NotFoundError, None, lambda: chat(client, model="no-such-model"))
    try:
        complete(client, prompt="word " * 9000)
    except bad as found:
        same(found.code, "context_length_exceeded", "code of a prompt that is too long")
    else:
        raise AssertionError("a prompt that is too long was accepted")


def deadlines(client):
    """The server's by a header, and the client's own."""
    endless = dict(max_tokens=4000, extra_body={"ignore_eos": True})
    answer = chat(client, **endless, extra_headers={"x-arbora-timeout-ms": "300"})
    same(answer.choices[0].finish_reason, "length", "finish_reason at the deadline")
    assert 0 <= answer.usage.completion_tokens < 4000, answer.usage
    header = "x-arbora-timeout-ms"
    refused(openai.BadRequestError, header, lambda: chat(client, extra_headers={header: "soon"}))
    try:
        chat(client.with_options(timeout=0.3), **endless)
    except openai.APITimeoutError:
        return
    raise AssertionError("4000 tokens in 0.3 s")


def raw_responses(client):
    raw = client.chat.completions.with_raw_response.create(
        model=MODEL, messages=ASK, max_tokens=4, extra_headers={"x-request-id": "mine"})
    same((raw.status_code, raw.headers["content-type"]), (200, "application/json"), "status and type")
    same(raw.headers["x-request-id"], "mine", "a request id of the client")
    answer = raw.parse()
    same((answer._request_id, answer.object), ("mine", "chat.completion"), "the parsed answer")
    assert abs(answer.created - time.time()) < 60, answer.created
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=ASK, max_tokens=4, stream=True,
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream"), response.headers
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]", lines


async def asynchronous(base_url, expected):
    async with openai.AsyncOpenAI(base_url=base_url, api_key="none", max_retries=0, timeout=60) as client:
        answers = await asyncio.gather(*(chat(client) for _ in range(4)))
        same({answer.choices[0].message.content for answer in answers}, {expected}, "answers at once")
        chunks = [chunk async for chunk in await chat(client, stream=True)]
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        same(joined, expected, "an asynchronous stream")
        same([model.id async for model in client.models.list()], [MODEL], "models")
        endless = asyncio.create_task(chat(client, max_tokens=4000, extra_body={"ignore_eos": True}))
        await asyncio.sleep(0.2)
        endless.cancel()
        await asyncio.gather(endless, return_exceptions=True)
        assert endless.cancelled()
        same((await chat(client)).choices[0].message.content, expected, "the answer after a cancelled one")


def keys(server):
    """A server that wants a key, for a moment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    process = subprocess.Popen([server, "serve", "--port", port, "--api-key", "secret", "--log", "error",
                                "--kv-memory", "64MiB"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        right = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", timeout=60, max_retries=0)
        until = time.monotonic() + 60
        while True:
            try:
                right.models.list()
                break
            except openai.APIConnectionError:
                assert process.poll() is None and time.monotonic() < until, "the server with a key did not start"
                time.sleep(0.1)
        wrong = right.with_options(api_key="wrong")
        refused(openai.AuthenticationError, None, lambda: chat(wrong))
        refused(openai.AuthenticationError, None, lambda: wrong.models.list())
        assert text(right) is not None
    finally:
        process.terminate()
        process.wait(60)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--server", help="binary of a server to try keys with")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key="none", max_retries=0, timeout=120)
    for check in (
        n, sampling, lengths, penalties, logit_bias, chat_logprobs, scores, prompt_logprobs, stops, stream,
        prompts, extensions, models, errors, deadlines, raw_responses,
    ):
        check(client)
    asyncio.run(asynchronous(args.base_url, text(client)))
    if args.server:
        keys(args.server)
    print("openai", openai.__version__, "every parameter as expected")


main()
