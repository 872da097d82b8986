"""The default model's vocabulary in tokenizers built by Hugging Face's own library.

SmolLM2's `tokenizer.json` (not in the GGUF) is byte-level BPE that first splits every digit off;
transformers' GGUF conversion leaves the digit split out, so it is given here by hand. The other
pre-tokenizers are those of transformers (`GGUF_PRE_TOKENIZER_SPLITS`, and Qwen2's NFC), applied to the same
vocabulary and merges: what is compared is how text is cut, and for that any vocabulary will do.
"""

import gguf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

CONTROL = 3
PRE_TOKENIZERS = ["smollm", "gpt-2", "llama-bpe", "qwen2", "tekken"]
IGNORE_MERGES = {"llama-bpe", "tekken"}


def strings(field):
    return [bytes(field.parts[index]).decode("utf-8") for index in field.data]


def pre_tokenizer(name):
    if name in ("smollm", "gpt-2"):
        digits = [pre_tokenizers.Digits(individual_digits=True)] if name == "smollm" else []
        return pre_tokenizers.Sequence([*digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    split = pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def load(path, name="smollm"):
    fields = gguf.GGUFReader(path).fields
    assert strings(fields["tokenizer.ggml.pre"]) == ["smollm"]
    tokens = strings(fields["tokenizer.ggml.tokens"])
    merges = [tuple(merge.split(" ", 1)) for merge in strings(fields["tokenizer.ggml.merges"])]
    kinds = fields["tokenizer.ggml.token_type"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=name in IGNORE_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizer(name)
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, index in zip(tokens, kinds.data) if kinds.parts[index][0] == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
