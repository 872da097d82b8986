"""SGLang's front-end language against a running server: gen, select, fork, regex, batches and streams.

    python sglang_language.py --base-url http://127.0.0.1:8000

Needs the package sglang, of which only the language is imported (its server's modules need a GPU's packages),
and what the language imports: numpy, requests, aiohttp, msgspec, tqdm, pydantic, ipython, pybase64.
"""

import argparse
import importlib.util
import pathlib
import re
import sys
import types


def import_language():
    """The modules of sglang.lang without what sglang/__init__.py loads of its server."""
    found = importlib.util.find_spec("sglang")
    package = types.ModuleType("sglang")
    package.__path__ = [str(pathlib.Path(found.origin).parent)]
    sys.modules["sglang"] = package
    from sglang.lang import api, choices
    from sglang.lang.backend.runtime_endpoint import RuntimeEndpoint

    return api, choices, RuntimeEndpoint


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    base_url = parser.parse_args().base_url
    sgl, choices, RuntimeEndpoint = import_language()
    backend = RuntimeEndpoint(base_url)
    sgl.set_default_backend(backend)

    @sgl.function
    def answer(s, question):
        s += sgl.system("You answer in one word.")
        s += sgl.user(question)
        s += sgl.assistant(sgl.gen("answer", max_tokens=8, temperature=0, stop=["\n", ".", "!", "?", ";", "#"]))

    state = answer.run(question="What is the capital of France?")
    assert state["answer"] and "\n" not in state["answer"], state["answer"]
    assert state.get_meta_info("answer")["finish_reason"]["type"] in ("stop", "length")
    again = answer.run(question="What is the capital of France?")
    assert again["answer"] == state["answer"], "the same request, the same answer"
    assert again.get_meta_info("answer")["cached_tokens"] > 20

    @sgl.function
    def number(s):
        s += "The year in which the first world war began: " + sgl.gen("year", regex="19[0-9]{2}", temperature=0)
        s += ". A whole number: " + sgl.gen("n", dtype=int, max_tokens=6, temperature=0)

    state = number.run()
    assert re.fullmatch("19[0-9]{2}", state["year"]), state["year"]
    assert re.fullmatch(r"[-+]?[0-9]+[ \n]*", state["n"]), state["n"]

    for method in [
        choices.token_length_normalized,
        choices.greedy_token_selection,
        choices.unconditional_likelihood_normalized,
    ]:

        @sgl.function
        def pick(s):
            s += "The capital of France is"
            s += sgl.select("city", choices=[" Paris", " banana pudding"], choices_method=method)

        state = pick.run()
        assert state["city"] == " Paris", (method, state["city"])
        assert len(state.get_meta_info("city")["input_token_logprobs"]) == 2

    @sgl.function
    def tips(s):
        s += sgl.system("You are helpful.")
        s += sgl.user("How do I stay healthy?")
        forks = s.fork(3)
        for idx, fork in enumerate(forks):
            fork += sgl.assistant(f"Tip {idx}: " + sgl.gen("tip", max_tokens=12, temperature=0))
        forks.join()
        s += sgl.assistant(" ".join(fork["tip"] for fork in forks))
        s["tips"] = [fork["tip"] for fork in forks]

    state = tips.run()
    assert len(state["tips"]) == 3 and all(state["tips"]), state["tips"]

    questions = [{"question": f"What is {n} plus {n}?"} for n in range(6)]
    states = answer.run_batch(questions, num_threads=3, progress_bar=False)
    assert len(states) == 6 and all(state["answer"] for state in states)

    stream = answer.run(question="Name a river.", stream=True)
    pieces = list(stream.text_iter("answer"))
    assert "".join(pieces) == answer.run(question="Name a river.")["answer"], pieces

    backend.flush_cache()
    print("sglang's language: gen, regex, dtype, select by three methods, fork, batch, stream")


main()
