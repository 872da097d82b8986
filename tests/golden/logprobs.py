"""Reference log-probabilities of the default model on a fixed text.

    python logprobs.py MODEL.gguf          (needs torch, transformers, accelerate, gguf)

Loads the GGUF through transformers, which dequantizes every weight to float32, runs one teacher-forced pass
over `text.txt` and writes `logprobs.json`: for each position the token, the log-probability the model gave
the token that follows, the likeliest next token and how far its log-probability is ahead of the second.
"""

import json
import pathlib
import sys

import torch
from transformers import AutoModelForCausalLM

import reference_tokenizer

here = pathlib.Path(__file__).parent
path = pathlib.Path(sys.argv[1])
model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
ids = reference_tokenizer.load(path).encode((here / "text.txt").read_text()).ids
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0].double()
logprobs = torch.log_softmax(logits, dim=-1)
top = logprobs.topk(2, dim=-1)
rows = len(ids) - 1
next_logprob = logprobs[torch.arange(rows), torch.tensor(ids[1:])]
golden = {
    "perplexity": round(float(torch.exp(-next_logprob.mean())), 6),
    "ids": ids,
    "next_logprob": [round(float(value), 4) for value in next_logprob],
    "argmax": top.indices[:, 0].tolist(),
    "gap": [round(float(first - second), 4) for first, second in top.values],
}
(here / "logprobs.json").write_text(json.dumps(golden, separators=(",", ":")) + "\n")
print(len(ids), "tokens, perplexity", golden["perplexity"])
