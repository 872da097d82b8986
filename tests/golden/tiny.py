"""Tiny random Llama models as F32 GGUF files, with the logits transformers computes for them.

    python tiny.py          (needs torch, transformers, gguf, numpy)

Writes `tiny-NAME.gguf` and `tiny-NAME.json` (`ids`, and `logits` of some positions rounded to 1e-4). Shapes
are awkward on purpose: head sizes the fast kernels do not know, untied and tied heads, groups of three.

Everything is f32 but keys and values, which are rounded to bf16 as Arbora keeps them, so that little is left
between the two but the order of sums.
"""

import json
import pathlib

import gguf
import torch
from tokenizers import pre_tokenizers
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

here = pathlib.Path(__file__).parent
ROWS = [0, 1, 15, 16, 63, 64, 65, 127, 128, 149]
MODELS = {
    "untied": dict(hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=6,
                   num_key_value_heads=2, head_dim=16, vocab_size=300, tie_word_embeddings=False),
    "tied": dict(hidden_size=40, intermediate_size=56, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=1, head_dim=24, vocab_size=300, tie_word_embeddings=True),
}
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}


class Bf16Cache(DynamicCache):
    """Keeps keys (after their rotation) and values in bf16."""

    def update(self, keys, values, *args, **kwargs):
        return super().update(keys.bfloat16().float(), values.bfloat16().float(), *args, **kwargs)


def interleaved(weight, n_heads):
    """GGUF's llama layout rotates elements 2i and 2i + 1; transformers' i and i + half."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def gguf_tensors(model, config):
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        data = tensor.float().numpy()
        if name == "model.embed_tokens.weight":
            yield "token_embd.weight", data
        elif name == "model.norm.weight":
            yield "output_norm.weight", data
        elif name == "lm_head.weight":
            if not config.tie_word_embeddings:
                yield "output.weight", data
        else:
            layer, rest = name.removeprefix("model.layers.").split(".", 1)
            short = NAMES[rest.removesuffix(".weight")]
            if short in heads:
                data = interleaved(data, heads[short])
            yield f"blk.{layer}.{short}.weight", data


def write(name, shape, seed):
    torch.manual_seed(seed)
    config = LlamaConfig(**shape, max_position_embeddings=256, rms_norm_eps=1e-5, initializer_range=0.15,
                         rope_parameters=dict(rope_type="default", rope_theta=10000.0))
    model = LlamaForCausalLM(config).float().eval()
    for parameter in (p for n, p in model.named_parameters() if "norm" in n):
        parameter.data = 1.0 + 0.2 * torch.randn_like(parameter)
    writer = gguf.GGUFWriter(here / f"tiny-{name}.gguf", "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(256)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    tokens = ["<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]
    tokens += [f"[unused{index}]" for index in range(len(tokens), config.vocab_size)]
    writer.add_token_list(tokens)
    writer.add_token_types([3] + [1] * (config.vocab_size - 1))
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    for tensor_name, data in gguf_tensors(model, config):
        writer.add_tensor(tensor_name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ids = torch.randint(0, config.vocab_size, (1, 150))
    with torch.no_grad():
        logits = model(ids, past_key_values=Bf16Cache(), use_cache=True).logits[0]
    rows = {row: [round(float(value), 4) for value in logits[row]] for row in ROWS}
    text = json.dumps({"ids": ids[0].tolist(), "logits": rows}, separators=(",", ":"))
    (here / f"tiny-{name}.json").write_text(text + "\n")


for number, (name, shape) in enumerate(MODELS.items()):
    write(name, shape, 1000 + number)
