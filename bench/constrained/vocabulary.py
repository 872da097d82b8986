"""Writes vocab.jsonl and tokenizer.json of a GGUF model with a byte-level BPE vocabulary.

    python vocabulary.py MODEL.gguf FOLDER        (needs the packages gguf and tokenizers)
"""

import json
import sys

import gguf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers


def byte_of_char():
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    table.update({chr(256 + i): byte for i, byte in enumerate(rest)})
    return table


def main():
    model, folder = sys.argv[1:]
    fields = gguf.GGUFReader(model).fields
    tokens = fields["tokenizer.ggml.tokens"].contents()
    types = fields["tokenizer.ggml.token_type"].contents()
    merges = fields["tokenizer.ggml.merges"].contents()
    table = byte_of_char()
    with open(f"{folder}/vocab.jsonl", "w") as out:
        for number, (token, kind) in enumerate(zip(tokens, types)):
            special = kind != 1
            text = token.encode() if special else bytes(table[char] for char in token)
            print(json.dumps({"id": number, "hex": text.hex(), "special": special}), file=out)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(merge.split(" ")) for merge in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token, kind in zip(tokens, types) if kind != 1])
    tokenizer.save(f"{folder}/tokenizer.json")


main()
