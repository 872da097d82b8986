"""Hugging Face's client of Text Generation Inference against a running server.

    python tgi_client.py --base-url http://127.0.0.1:8000          (needs huggingface_hub)

Texts whole and streamed, details, stops, a grammar, chats, errors.
"""

import argparse
import json

from huggingface_hub import InferenceClient
from huggingface_hub.errors import ValidationError

MODEL = "smollm2:135m"
ASK = "The three primary colours are"
SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"]}


def texts(client):
    # Without a word about it, the prompt is repeated.
    full = client.text_generation(ASK, max_new_tokens=12)
    whole = client.text_generation(ASK, max_new_tokens=12, return_full_text=False)
    assert full == ASK + whole
    assert whole and isinstance(whole, str)
    assert "".join(client.text_generation(ASK, max_new_tokens=12, stream=True)) == whole
    told = client.text_generation(ASK, max_new_tokens=12, details=True, decoder_input_details=True,
                                  return_full_text=False)
    assert told.generated_text == whole and told.details.generated_tokens <= 12
    assert len(told.details.tokens) == told.details.generated_tokens and len(told.details.prefill) > 3
    assert told.details.finish_reason in ("length", "eos_token")
    events = list(client.text_generation(ASK, max_new_tokens=12, stream=True, details=True,
                                         return_full_text=False))
    assert events[-1].generated_text == whole and events[-1].details.generated_tokens <= 12
    stopped = client.text_generation(ASK, max_new_tokens=30, stop=[" "], details=True)
    assert stopped.details.finish_reason == "stop_sequence", stopped
    drawn = [client.text_generation(ASK, max_new_tokens=12, do_sample=True, temperature=0.8, seed=7)
             for _ in range(2)]
    assert drawn[0] == drawn[1], "a seed repeats"


def grammars(client):
    ask = {"max_new_tokens": 40, "return_full_text": False}
    text = client.text_generation(ASK, **ask, grammar={"type": "json", "value": SCHEMA})
    assert json.loads(text)["colour"] in ("red", "blue"), text
    text = client.text_generation(ASK, **ask, grammar={"type": "regex", "value": "(red|blue)!"})
    assert text in ("red!", "blue!"), text


def chats(client):
    messages = [{"role": "user", "content": "Name one colour."}]
    whole = client.chat_completion(messages, model=MODEL, max_tokens=12, temperature=0)
    parts = client.chat_completion(messages, model=MODEL, max_tokens=12, temperature=0, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content and text


def errors(client):
    try:
        client.text_generation(ASK, max_new_tokens=3, watermark=True)
    except ValidationError as error:
        assert "watermark" in str(error), error
        return
    raise AssertionError("a watermark was promised")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    client = InferenceClient(base_url=parser.parse_args().base_url, timeout=120)
    texts(client)
    grammars(client)
    chats(client)
    errors(client)
    print("huggingface_hub: texts, grammars, chats and errors as expected")


main()
