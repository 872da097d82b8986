"""Tiny random encoders of every kind as sentence-transformers saves them, and what it computes for them; and
50 vectors of all-MiniLM-L6-v2.

    python encoders.py FOLDER [NAME ...]         (needs torch, transformers, sentence-transformers)

FOLDER has the unpacked all-MiniLM-L6-v2 (`arbora pull minilm:l6-v2` says where it is). Writes a folder
`encoders/NAME` (settings, safetensors, tokenizer) for each kind, and `encoders/NAME.json` with `tokens` and
`vectors` of the texts, or with `scores` of their pairs of a reranker; `encoders/minilm.json` has the vectors
of the real model in base64.
"""

import base64
import json
import pathlib
import random
import shutil
import sys

import numpy
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from sentence_transformers import models as modules
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram, WordPiece
from transformers import (BertConfig, BertForSequenceClassification, BertModel, DistilBertConfig,
                          DistilBertModel, NomicBertConfig, NomicBertModel, PreTrainedTokenizerFast,
                          RobertaConfig, RobertaForSequenceClassification, RobertaModel, XLMRobertaConfig,
                          XLMRobertaModel)

here = pathlib.Path(__file__).parent
TEXTS = [
    "", " ", "a", "Hello, world!", "The quick brown fox jumps over the lazy dog.", "UPPER lower MiXeD",
    "naïve café, Größe, Ελλάδα", "e\u0301 nfd ﬁ ligature ½ Ⅷ", "日本語の文。中文", "🙂👩‍👩‍👧", "12345 x 6 7.89",
    "tabs\tand\nlines\r\n end", "a\x00b\ufffdc\u00adsoft\u200bzero", "[CLS] in text [SEP] <s> </s> <mask>",
    "function f(x) { return x+1; }  // done", "\u00a0nbsp\u2003em ", "don't we'll I'M", "…—–“quotes”",
    "x" * 120, "a longer text that goes on for a while and has rather more tokens than the others before it do",
]
SMALL = dict(vocab_size=300, hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=70,
             max_position_embeddings=160)


def tokenizer(kind):
    """One of 300 tokens, trained on the text of the other goldens."""
    lines = (here / "text.txt").read_text().splitlines() + TEXTS
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    first, last = specials[2:4]
    if kind == "wordpiece":
        made = Tokenizer(WordPiece(unk_token="[UNK]"))
        made.normalizer = normalizers.BertNormalizer(lowercase=True)
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        made.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials)
    else:
        specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        first, last = "<s>", "</s>"
        if kind == "bpe":
            made = Tokenizer(BPE())
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
            alphabet = pre_tokenizers.ByteLevel.alphabet()
            trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)
        else:
            made = Tokenizer(Unigram())
            made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" {2,}", " ")])
            made.pre_tokenizer = pre_tokenizers.Metaspace()
            made.decoder = decoders.Metaspace()
            trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token="<unk>")
    made.train_from_iterator(lines, trainer)
    ids = [(token, made.token_to_id(token)) for token in (first, last)]
    if kind == "bpe":
        made.post_processor = processors.RobertaProcessing(ids[1], ids[0], add_prefix_space=False)
    else:
        pair = f"{first} $A {last} $B:1 {last}:1" if kind == "wordpiece" else f"{first} $A {last} {last} $B {last}"
        made.post_processor = processors.TemplateProcessing(f"{first} $A {last}", pair, ids)
    unknown = "[UNK]" if kind == "wordpiece" else "<unk>"
    pad = "[PAD]" if kind == "wordpiece" else "<pad>"
    inputs = ["input_ids", "attention_mask"] + (["token_type_ids"] if kind == "wordpiece" else [])
    return PreTrainedTokenizerFast(tokenizer_object=made, cls_token=first, sep_token=last, pad_token=pad,
                                   unk_token=unknown, mask_token=specials[-1], model_max_length=150,
                                   model_input_names=inputs)


def larger(model):
    """Random weights are so small that all texts are alike: makes them larger, and biases that matter."""
    torch.manual_seed(7)
    with torch.no_grad():
        for name, weights in model.named_parameters():
            is_norm = "norm" in name.lower() and name.endswith("weight")
            weights.copy_(torch.randn_like(weights) * (0.3 if is_norm else 0.15) + (1.0 if is_norm else 0.0))
    return model.eval()


def save(name, model, made, steps, dtype):
    """Saves a checkpoint through sentence-transformers, whose own classes load it again."""
    folder = here / "encoders" / name
    shutil.rmtree(folder, ignore_errors=True)
    scratch = folder.with_name(name + ".tmp")
    model.to(dtype).save_pretrained(scratch)
    made.save_pretrained(scratch)
    transformer = modules.Transformer(str(scratch), max_seq_length=24)
    SentenceTransformer(modules=[transformer, *steps]).save(str(folder), create_model_card=False)
    shutil.rmtree(scratch)
    return folder


def is_wanted(name):
    return not sys.argv[2:] or name in sys.argv[2:]


def embedder(name, model, kind, steps, dtype=torch.float32, prompts=None):
    if not is_wanted(name):
        return
    folder = save(name, larger(model), tokenizer(kind), steps, dtype)
    if prompts:
        path = folder / "config_sentence_transformers.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"prompts": prompts}))
    # In f64, so that the goldens are exact.
    loaded = SentenceTransformer(str(folder), model_kwargs={"dtype": torch.float32}).double()
    tokens = [loaded.tokenizer(text, truncation=True, max_length=24)["input_ids"] for text in TEXTS]
    vectors = [loaded.encode(text, prompt="", convert_to_numpy=True) for text in TEXTS]
    write(name, {"texts": TEXTS, "tokens": tokens, "vectors": [[round(float(x), 6) for x in v] for v in vectors]})


def reranker(name, model, kind):
    if not is_wanted(name):
        return
    folder = here / "encoders" / name
    shutil.rmtree(folder, ignore_errors=True)
    larger(model).save_pretrained(folder)
    made = tokenizer(kind)
    made.save_pretrained(folder)
    loaded = CrossEncoder(str(folder), max_length=150)
    random.seed(5)
    pairs = [[random.choice(TEXTS[2:]), text] for text in TEXTS[2:]]
    tokens = [made(*pair)["input_ids"] for pair in pairs]
    scores = [float(loaded.predict([pair])[0]) for pair in pairs]
    write(name, {"pairs": pairs, "tokens": tokens, "scores": [round(score, 6) for score in scores]})


def write(name, golden):
    path = here / "encoders" / (name + ".json")
    path.write_text(json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")
    folder = here / "encoders" / name
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    print(name, size, "bytes")


def real(folder):
    lines = [line for line in (here / "text.txt").read_text().splitlines() if line.strip()]
    texts = (TEXTS[2:] + [" ".join(lines[i:i + 1 + i % 7]) for i in range(len(lines))])[:49]
    texts.append(" ".join(lines)[:4000])
    assert len(texts) == 50, len(texts)
    model = SentenceTransformer(folder)
    vectors = numpy.stack([model.encode(text, convert_to_numpy=True) for text in texts]).astype("<f4")
    tokens = [len(model.tokenizer(text, truncation=True, max_length=256)["input_ids"]) for text in texts]
    write("minilm", {"texts": texts, "n_tokens": tokens, "vectors": base64.b64encode(vectors.tobytes()).decode()})


(here / "encoders").mkdir(exist_ok=True)
mean = lambda: modules.Pooling(48, pooling_mode="mean")
cls = lambda: modules.Pooling(48, pooling_mode="cls")
embedder("bert", BertModel(BertConfig(**SMALL)), "wordpiece", [mean(), modules.Normalize()])
embedder("bert-cls", BertModel(BertConfig(**SMALL, hidden_act="gelu_new"), add_pooling_layer=False), "wordpiece",
         [cls(), modules.Normalize()], torch.bfloat16, {"query": "find: ", "document": ""})
embedder("bert-dense", BertModel(BertConfig(**SMALL), add_pooling_layer=False), "wordpiece",
         [modules.Pooling(48, pooling_mode="max"), modules.Dense(48, 20)], torch.float16)
embedder("roberta", RobertaModel(RobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1)), "bpe", [mean()])
embedder("xlm-roberta", XLMRobertaModel(XLMRobertaConfig(**SMALL, type_vocab_size=1, pad_token_id=1)), "unigram",
         [cls(), modules.Normalize()])
embedder("distilbert", DistilBertModel(DistilBertConfig(vocab_size=300, dim=48, n_layers=2, n_heads=3,
         hidden_dim=70, max_position_embeddings=160)), "wordpiece", [mean()])
embedder("nomic", NomicBertModel(NomicBertConfig(**SMALL), add_pooling_layer=False), "wordpiece",
         [mean(), modules.Normalize()])
reranker("bert-reranker", BertForSequenceClassification(BertConfig(**SMALL, num_labels=1)), "wordpiece")
reranker("roberta-reranker", RobertaForSequenceClassification(
    RobertaConfig(**SMALL, num_labels=1, type_vocab_size=1, pad_token_id=1)), "bpe")
if is_wanted("minilm"):
    real(sys.argv[1])
