"""Texts per second of a running Arbora, sentence-transformers and onnxruntime, in turns on the same machine.

    arbora serve --model minilm:l6-v2 --threads N
    python embeddings.py http://127.0.0.1:8000 FOLDER [--threads N]

Needs sentence-transformers, onnxruntime and onnx.

FOLDER has the same model (`arbora pull minilm:l6-v2` prints it). Arbora is asked over HTTP, one request with
all texts of a batch at a time; the others are called in this process, onnxruntime as fastembed does: texts
padded to the longest of the batch, pooling in numpy. All three get the same texts and take turns, so that
whatever else the machine does meets all of them; the median of the rounds is printed.
"""

import argparse
import base64
import http.client
import json
import pathlib
import statistics
import tempfile
import time
import urllib.parse

import numpy
import onnxruntime
import torch
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer

WORDS = pathlib.Path(__file__).parent.parent.joinpath("tests/golden/text.txt").read_text().split()


def texts(n, length):
    """`n` texts of `length` words, or of 3 to 60 words where it is 0."""
    lengths = [length or 3 + (i * 37) % 58 for i in range(n)]
    return [" ".join((WORDS * 9)[(i * 31) % 400:][:words]) for i, words in enumerate(lengths)]


class Arbora:
    def __init__(self, url):
        self.connection = http.client.HTTPConnection(urllib.parse.urlparse(url).netloc)

    def encode(self, batch):
        body = json.dumps({"input": batch, "encoding_format": "base64", "truncate_prompt_tokens": -1})
        self.connection.request("POST", "/v1/embeddings", body, {"content-type": "application/json"})
        answer = json.load(self.connection.getresponse())
        return numpy.stack([numpy.frombuffer(base64.b64decode(x["embedding"]), "<f4") for x in answer["data"]])


class Onnx:
    def __init__(self, folder, threads):
        self.tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()
        with tempfile.TemporaryDirectory() as scratch:
            path = f"{scratch}/model.onnx"
            export(folder, path)
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = threads
            self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def encode(self, batch):
        encoded = self.tokenizer.encode_batch(batch)
        rows = lambda name: numpy.array([getattr(one, name) for one in encoded], dtype=numpy.int64)
        mask = rows("attention_mask")
        feed = {"input_ids": rows("ids"), "attention_mask": mask, "token_type_ids": rows("type_ids")}
        hidden = self.session.run(None, feed)[0]
        pooled = (hidden * mask[:, :, None]).sum(1) / mask.sum(1)[:, None]
        return pooled / numpy.linalg.norm(pooled, axis=1, keepdims=True)


def export(folder, path):
    from transformers import AutoModel

    class Hidden(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(input_ids=input_ids, attention_mask=attention_mask,
                              token_type_ids=token_type_ids).last_hidden_state

    model = Hidden(AutoModel.from_pretrained(folder, attn_implementation="eager").eval())
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tuple(torch.ones(2, 7, dtype=torch.long) for _ in names)
    axes = {name: {0: "batch", 1: "tokens"} for name in [*names, "hidden"]}
    torch.onnx.export(model, example, path, input_names=names, output_names=["hidden"], dynamic_axes=axes,
                      opset_version=17, dynamo=False)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("url")
    arguments.add_argument("folder")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--batches", default="1,8,64")
    arguments.add_argument("--seconds", type=float, default=1.0)
    given = arguments.parse_args()
    torch.set_num_threads(given.threads)
    transformer = SentenceTransformer(given.folder, device="cpu")
    peers = {
        "arbora": Arbora(given.url).encode,
        "sentence-transformers": lambda batch: transformer.encode(batch, batch_size=len(batch)),
        "onnxruntime": Onnx(given.folder, given.threads).encode,
    }
    sample = texts(20, 0)
    vectors = {name: encode(sample) for name, encode in peers.items()}
    for name, found in vectors.items():
        cosines = (found * vectors["sentence-transformers"]).sum(1)
        print(f"{name}: least cosine with sentence-transformers {cosines.min():.7f}")
    print("words  batch  texts/s: " + ", ".join(peers) + "; arbora beside each")
    for words in (8, 100, 0):
        for n in map(int, given.batches.split(",")):
            batch = texts(n, words)
            rates = {name: [] for name in peers}
            for _ in range(given.rounds):
                for name, encode in peers.items():
                    encode(batch)
                    start, count = time.perf_counter(), 0
                    while time.perf_counter() - start < given.seconds:
                        encode(batch)
                        count += n
                    rates[name].append(count / (time.perf_counter() - start))
            medians = {name: statistics.median(found) for name, found in rates.items()}
            ratios = [medians["arbora"] / medians[name] for name in list(peers)[1:]]
            print(f"{words or '3-60':>5}  {n:5}  " + "  ".join(f"{rate:8.1f}" for rate in medians.values())
                  + "   " + "  ".join(f"{ratio:.2f}x" for ratio in ratios), flush=True)


main()
