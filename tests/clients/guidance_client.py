"""The guidance library against a running server, as it talks to vLLM and to SGLang.

    python guidance_client.py --base-url http://127.0.0.1:8000          (needs guidance, openai)

Its grammars travel as Lark in `guided_grammar` and `structured_outputs` (vLLM) or in `regex`, `ebnf` and
`response_format` (SGLang).
"""

import argparse
import json
import re

from guidance import assistant, gen, select, system, user
from guidance import json as gen_json
from guidance.models.experimental import SglangModel, VLLMModel

MODEL = "smollm2:135m"
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "year": {"type": "integer", "minimum": 1900, "maximum": 2000}},
    "required": ["city", "year"],
    "additionalProperties": False,
}


def ask(model):
    with system():
        model += "You are a helpful assistant."
    with user():
        model += "Which city is the capital of France, and since when?"
    return model


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    base_url = parser.parse_args().base_url + "/v1"
    kinds = {"vLLM": VLLMModel, "SGLang": SglangModel}
    for name, kind in kinds.items():
        model = ask(kind(model=MODEL, base_url=base_url, api_key="unused", echo=False))
        with assistant():
            year = model + gen("year", regex="19[0-9]{2}", temperature=0)
        assert re.fullmatch("19[0-9]{2}", year["year"]), (name, year["year"])
        with assistant():
            answer = model + gen_json("answer", schema=SCHEMA, temperature=0)
        value = json.loads(answer["answer"])
        assert value["city"] in ("Paris", "Rome") and 1900 <= value["year"] <= 2000, (name, value)
        with assistant():
            city = model + ("The capital is " + select(["Paris", "Rome"], name="city") + ".")
        assert city["city"] in ("Paris", "Rome"), (name, city["city"])
        # One grammar: a limit of tokens, a temperature, a stop that the text goes on with, JSON.
        year = gen("year", regex="[0-9]{1,40}", max_tokens=3, temperature=0.7)
        parts = "In " + year + " it was " + gen("was", regex="[a-z ,]{1,60}", stop=",")
        with assistant():
            whole = model + (parts + ", see " + gen_json("see", schema=SCHEMA))
        assert re.fullmatch("[0-9]+", whole["year"]) and "," not in whole["was"], (name, str(whole))
        assert json.loads(whole["see"])["city"] in ("Paris", "Rome"), (name, whole["see"])
        if name == "vLLM":
            with assistant():
                text = model + gen("text", max_tokens=12, stop=".", temperature=0)
            # guidance's own parser reads no stop at the end of a grammar, so there is no capture.
            said = str(text).rsplit("assistant", 1)[1].strip()
            assert said and "." not in said[:-1], (name, said)
    print("guidance: regex, JSON, select and whole grammars as for vLLM and SGLang; stops as for vLLM")


main()
