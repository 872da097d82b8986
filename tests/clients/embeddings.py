"""The official OpenAI client's embeddings against a running server, and the routes of rerankers.

    arbora serve --model minilm:l6-v2
    python embeddings.py --base-url http://127.0.0.1:8000          (needs openai)
"""

import argparse
import concurrent.futures
import json
import struct
import urllib.request

import openai

MODEL = "minilm:l6-v2"


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--base-url", required=True)
    url = arguments.parse_args().base_url
    client = openai.OpenAI(base_url=url + "/v1", api_key="unused", max_retries=0)
    texts = ["A cat sits on a mat.", "A feline rests on a rug.", "Stocks fell on Monday."]
    # The client asks for base64 and decodes it, unless it is told otherwise.
    coded = client.embeddings.create(model=MODEL, input=texts)
    plain = client.embeddings.create(model=MODEL, input=texts, encoding_format="float")
    # As many digits are written as tell an f32 from all others; the client reads them as wider numbers.
    bits = lambda data: [struct.pack(f"{len(x.embedding)}f", *x.embedding) for x in data]
    assert bits(coded.data) == bits(plain.data)
    assert [x.index for x in coded.data] == [0, 1, 2] and coded.model == MODEL
    assert coded.usage.total_tokens == coded.usage.prompt_tokens > 10
    cat, feline, stocks = (x.embedding for x in plain.data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert abs(dot(cat, cat) - 1) < 1e-5 and dot(cat, feline) > 0.5 > dot(cat, stocks)
    short = client.embeddings.create(model=MODEL, input=texts[0], dimensions=16).data[0].embedding
    assert len(short) == 16 and abs(dot(short, short) - 1) < 1e-5
    ids = client.embeddings.create(model=MODEL, input=[101, 1037, 4937, 102]).data[0].embedding
    assert len(ids) == 384
    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        again = list(pool.map(lambda _: client.embeddings.create(model=MODEL, input=texts[0]), range(64)))
    assert all(bits(x.data) == bits(plain.data[:1]) for x in again), "the same bits in any batch"
    for broken, param in ((dict(input="a " * 999), "input"), (dict(input="a", dimensions=999), "dimensions")):
        try:
            client.embeddings.create(model=MODEL, **broken)
            raise AssertionError(f"{param} was accepted")
        except openai.BadRequestError as error:
            assert error.param == param, error
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
        raise AssertionError("a chat was accepted")
    except openai.BadRequestError as error:
        assert "generates no text" in error.message
    body = json.dumps({"query": "an animal", "documents": texts, "top_n": 2}).encode()
    request = urllib.request.Request(url + "/v1/rerank", body, {"content-type": "application/json"})
    results = json.load(urllib.request.urlopen(request))["results"]
    assert len(results) == 2 and {x["index"] for x in results} == {0, 1}, results
    print("embeddings and reranking are as the clients want them")


main()
