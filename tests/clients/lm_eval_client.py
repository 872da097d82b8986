"""EleutherAI's evaluation harness against a running server: log-likelihoods and texts with six stop strings.

    python lm_eval_client.py --base-url http://127.0.0.1:8000          (needs lm-eval[api])

The harness finds the server's tokenizer by /tokenizer_info, as it does with vLLM's.
"""

import argparse

import requests
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

MODEL = "smollm2:135m"
STOPS = ["\n\n", "Q:", "Question:", "</s>", "###", "\nA:"]


def instances(kind, arguments):
    return [Instance(kind, {}, each, idx) for idx, each in enumerate(arguments)]


def scored(base_url, context, continuation):
    """The same log-likelihood from /generate's lists."""
    def tokens(text):
        body = {"prompt": text, "add_special_tokens": False}
        return requests.post(f"{base_url}/tokenize", json=body, timeout=60).json()["tokens"]

    body = {"input_ids": tokens(context + continuation), "return_logprob": True, "logprob_start_len": len(tokens(context)),
            "sampling_params": {"max_new_tokens": 0}}
    meta = requests.post(f"{base_url}/generate", json=body, timeout=60).json()["meta_info"]
    return sum(entry[0] for entry in meta["input_token_logprobs"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    base_url = parser.parse_args().base_url
    model = LocalCompletionsAPI(base_url=f"{base_url}/v1/completions", model=MODEL, batch_size=4, max_retries=1)
    assert model.tokenizer_backend == "remote", model.tokenizer_backend

    pairs = [
        ("The capital of France is", " Paris"),
        ("The capital of France is", " banana"),
        ("Two plus two is", " four"),
        # After a whole sentence the model is likely to end its text.
        ("<|im_start|>user\nSay hi.<|im_end|>\n<|im_start|>assistant\nHi", "!"),
    ]
    likelihoods = model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert len(likelihoods) == len(pairs)
    assert likelihoods[0][0] > likelihoods[1][0], likelihoods
    for (context, continuation), (value, _) in zip(pairs, likelihoods):
        expected = scored(base_url, context, continuation)
        assert abs(value - expected) < 1e-3, (context, continuation, value, expected)

    asked = [
        ("Q: What is the capital of France?\nA:", {"until": STOPS, "max_gen_toks": 24}),
        ("Q: Name a river.\nA:", {"until": STOPS, "max_gen_toks": 24}),
    ]
    texts = model.generate_until(instances("generate_until", asked), disable_tqdm=True)
    assert len(texts) == 2 and all(texts), texts
    assert not any(stop in text for text in texts for stop in STOPS), texts
    print(f"lm-eval: {len(pairs)} log-likelihoods as /generate has them, texts with {len(STOPS)} stops")


main()
