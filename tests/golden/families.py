"""Tiny random models of every family as the hub keeps them, with what transformers computes for them.

    python families.py [NAME ...]          (needs torch, transformers, gguf)

Writes a folder `families/NAME` (config, safetensors, tokenizer) and `families/NAME.json` with `ids`, `logits`
of some positions rounded to 1e-4, `texts` and their `tokens`; of some families the same weights again as
`families/NAME.gguf`. Shapes are awkward on purpose. Half of the
`config.json` files are rewritten in the older style (`rope_theta`, `rope_scaling`, `torch_dtype`), which most
checkpoints on the hub still have.

Everything is computed in f32 from the stored weights, but keys and values are rounded to bf16 as Arbora keeps
them, so that little is left between the two but the order of sums.
"""

import json
import pathlib
import shutil
import sys

import gguf
import numpy
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (Cohere2Config, Cohere2ForCausalLM, CohereConfig, CohereForCausalLM, DynamicCache,
                          GPTNeoXConfig, GPTNeoXForCausalLM, Gemma2Config, Gemma2ForCausalLM,
                          Gemma3ForCausalLM, Gemma3TextConfig, GemmaConfig, GemmaForCausalLM, Glm4Config,
                          Glm4ForCausalLM, Glm4MoeConfig, Glm4MoeForCausalLM, GlmConfig, GlmForCausalLM,
                          GptOssConfig, GptOssForCausalLM, GraniteConfig, GraniteForCausalLM,
                          GraniteMoeConfig, GraniteMoeForCausalLM, LlamaConfig, LlamaForCausalLM,
                          MistralConfig, MistralForCausalLM, MixtralConfig, MixtralForCausalLM, Olmo2Config,
                          Olmo2ForCausalLM, OlmoeConfig, OlmoeForCausalLM, Phi3Config, Phi3ForCausalLM,
                          PhiConfig, PhiForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2MoeConfig,
                          Qwen2MoeForCausalLM, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig,
                          Qwen3MoeForCausalLM, SmolLM3Config, SmolLM3ForCausalLM, StableLmConfig,
                          StableLmForCausalLM, Starcoder2Config, Starcoder2ForCausalLM)

here = pathlib.Path(__file__).parent / "families"
ROWS = [0, 1, 15, 16, 63, 64, 65, 127, 128, 149]
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
           r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
TEXTS = [
    "", " ", "   ", "Hello, world!", " leading", "trailing ", "two  blanks   and\n\n\n lines \r\n end",
    "I'll don't we're IT'S", "12345 x 6 7.89", "Größe, naïve café, Ελλάδα", "e\u0301 nfd", "日本語の文", "🙂👩‍👩‍👧",
    "tab\tand\x0bmore\x00zero", "<s>in text</s>", "a<|end|>b <|end|> c", "<tool>x</tool>", "▁marks ▁ here",
    "\u00a0nbsp\u2003em  ", "function f(x) { return x+1; }  // done", "the and ing the thing  ", "٣٤ Ⅷ ½",
]


class Bf16Cache(DynamicCache):
    """Keeps keys (after their rotation) and values in bf16."""

    def update(self, keys, values, *args, **kwargs):
        return super().update(keys.bfloat16().float(), values.bfloat16().float(), *args, **kwargs)


def byte_level(pre_tokenizer, normalizer=None, bos=None, ignore_merges=False):
    vocabulary = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("Ġ", "Ġ"), ("1", "2"), ("l", "l")]
    for left, right in merges:
        vocabulary[left + right] = len(vocabulary)
    vocabulary["thing"] = len(vocabulary)
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.add_special_tokens(["<|end|>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<tool>", normalized=False), AddedToken("</tool>", normalized=True)])
    if bos:
        single = processors.TemplateProcessing(f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), single])
    return tokenizer


def sentencepiece(metaspace):
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    tokens += ["▁", *"abcdefghilmnoprstuvwxyHI", "th", "the", "▁the", "in", "ing", "▁▁", "▁a", "an", "and", "ö"]
    merges = [("▁", "▁"), ("t", "h"), ("th", "e"), ("▁", "the"), ("i", "n"), ("in", "g"), ("▁", "a"), ("a", "n"),
              ("an", "d")]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    model = models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = [AddedToken(name, normalized=False, special=True) for name in ["<unk>", "<s>", "</s>"]]
    tokenizer.add_special_tokens(special)
    tokenizer.add_special_tokens([AddedToken("<|end|>", normalized=False, special=True)])
    single = [("<s>", tokenizer.token_to_id("<s>"))]
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=single)
    return tokenizer


def split(pattern):
    return pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])


def shape(hidden, ffn, heads, kv_heads, layers=2, eps="rms_norm_eps", **more):
    return dict(hidden_size=hidden, intermediate_size=ffn, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, vocab_size=320,
                max_position_embeddings=256, initializer_range=0.15, **{eps: 1e-5}, **more)


def plain(theta, **scaling):
    return dict(rope_parameters=dict(rope_theta=theta, **(scaling or dict(rope_type="default"))))


SMOLLM = pre_tokenizers.Sequence([
    pre_tokenizers.Digits(individual_digits=True),
    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
])
MODELS = {
    "llama2": (LlamaForCausalLM, LlamaConfig(**shape(24, 40, 6, 6, head_dim=8, tie_word_embeddings=False),
               **plain(10000.0, rope_type="linear", factor=4.0)), torch.float32, sentencepiece(False)),
    "llama3": (LlamaForCausalLM, LlamaConfig(**shape(40, 56, 4, 1, head_dim=24, tie_word_embeddings=True),
               **plain(500.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                       original_max_position_embeddings=64)), torch.bfloat16,
               byte_level(split(LLAMA_3), bos="<s>", ignore_merges=True)),
    "mistral": (MistralForCausalLM, MistralConfig(**shape(32, 72, 4, 2, head_dim=16, tie_word_embeddings=False,
                sliding_window=40), **plain(1000.0)), torch.float16, sentencepiece(True)),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**shape(48, 40, 6, 2, tie_word_embeddings=True),
              **plain(10000.0)), torch.bfloat16, byte_level(split(QWEN_2), normalizers.NFC())),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**shape(32, 48, 4, 2, head_dim=24, tie_word_embeddings=False),
              **plain(10000.0)), torch.bfloat16, byte_level(split(QWEN_2), normalizers.NFC())),
    "smollm2": (LlamaForCausalLM, LlamaConfig(**shape(45, 56, 9, 3, head_dim=8, tie_word_embeddings=True),
                **plain(10000.0)), torch.bfloat16, byte_level(SMOLLM)),
    "qwen2-window": (Qwen2ForCausalLM, Qwen2Config(**shape(48, 40, 6, 2, tie_word_embeddings=True,
                     use_sliding_window=True, sliding_window=70, max_window_layers=1),
                     **plain(10000.0)), torch.bfloat16, byte_level(split(QWEN_2), normalizers.NFC())),
}
# The others share a tokenizer. A factor of sqrt(36) is the same in every format.
SLIDING, FULL = "sliding_attention", "full_attention"
ids = dict(bos_token_id=None, eos_token_id=2, pad_token_id=None)
for name, model_class, config, dtype in [
    ("gemma", GemmaForCausalLM, GemmaConfig(**shape(40, 56, 4, 1, head_dim=16, **ids), **plain(10000.0)),
     torch.float32),
    ("gemma2", Gemma2ForCausalLM, Gemma2Config(
        **shape(36, 40, 4, 2, layers=3, head_dim=12, query_pre_attn_scalar=12, sliding_window=40,
                attn_logit_softcapping=2.0, final_logit_softcapping=3.0, **ids), **plain(10000.0)),
     torch.bfloat16),
    ("gemma3", Gemma3ForCausalLM, Gemma3TextConfig(
        **shape(36, 40, 4, 2, layers=7, head_dim=16, query_pre_attn_scalar=16, sliding_window=40, **ids),
        rope_parameters={
            SLIDING: dict(rope_theta=10000.0, rope_type="default"),
            FULL: dict(rope_theta=100000.0, rope_type="linear", factor=4.0)}), torch.bfloat16),
    ("granite", GraniteForCausalLM, GraniteConfig(
        **shape(32, 48, 4, 2, attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.4,
                logits_scaling=0.7, tie_word_embeddings=True, **ids), **plain(10000.0)), torch.bfloat16),
    ("olmo2", Olmo2ForCausalLM, Olmo2Config(**shape(32, 48, 4, 2, **ids), **plain(10000.0)), torch.bfloat16),
    ("smollm3", SmolLM3ForCausalLM, SmolLM3Config(
        **shape(32, 40, 4, 2, layers=4, tie_word_embeddings=True, **ids), **plain(10000.0)), torch.bfloat16),
    ("phi3", Phi3ForCausalLM, Phi3Config(
        **shape(32, 48, 2, 1, sliding_window=100, original_max_position_embeddings=64, **ids),
        **plain(10000.0, rope_type="longrope", partial_rotary_factor=0.75, long_factor=[1, 1.5, 2, 3, 4.5, 6],
                short_factor=[1.0, 1.1, 1.2, 1.3, 1.4, 1.5])), torch.bfloat16),
    ("phi3-short", Phi3ForCausalLM, Phi3Config(
        **shape(32, 48, 2, 1, original_max_position_embeddings=256, **ids), **plain(10000.0)),
     torch.bfloat16),
    ("glm", GlmForCausalLM, GlmConfig(
        **shape(32, 40, 4, 2, head_dim=16, attention_bias=True, **ids), **plain(10000.0)), torch.bfloat16),
    ("glm4", Glm4ForCausalLM, Glm4Config(
        **shape(32, 40, 4, 2, head_dim=8, attention_bias=True, **ids), **plain(10000.0)), torch.bfloat16),
    ("stablelm", StableLmForCausalLM, StableLmConfig(
        **shape(32, 40, 2, 2, eps="layer_norm_eps", use_qkv_bias=True, **ids), **plain(10000.0)), torch.bfloat16),
    ("stablelm-parallel", StableLmForCausalLM, StableLmConfig(
        **shape(32, 40, 2, 1, eps="layer_norm_eps", use_parallel_residual=True, hidden_act="gelu", **ids),
        **plain(10000.0)), torch.bfloat16),
    ("command-r", CohereForCausalLM, CohereConfig(
        **shape(32, 40, 4, 2, eps="layer_norm_eps", logit_scale=0.6, **ids), **plain(10000.0)), torch.bfloat16),
    ("command-r7b", Cohere2ForCausalLM, Cohere2Config(
        **shape(32, 40, 4, 2, layers=4, eps="layer_norm_eps", logit_scale=0.6, sliding_window=40, **ids),
        **plain(10000.0)), torch.bfloat16),
    ("qwen3-yarn", Qwen3ForCausalLM, Qwen3Config(
        **shape(32, 40, 4, 2, head_dim=24, **ids),
        **plain(10000.0, rope_type="yarn", factor=4.0, original_max_position_embeddings=64)), torch.bfloat16),
    ("mixtral", MixtralForCausalLM, MixtralConfig(
        **shape(32, 40, 4, 2, num_local_experts=5, num_experts_per_tok=2, **ids), **plain(10000.0)),
     torch.bfloat16),
    ("qwen2-moe", Qwen2MoeForCausalLM, Qwen2MoeConfig(
        **shape(32, 40, 4, 2, layers=3, num_experts=6, num_experts_per_tok=3, moe_intermediate_size=24,
                shared_expert_intermediate_size=56, **ids), **plain(10000.0)), torch.bfloat16),
    ("qwen3-moe", Qwen3MoeForCausalLM, Qwen3MoeConfig(
        **shape(32, 40, 4, 2, layers=3, head_dim=24, num_experts=6, num_experts_per_tok=3,
                norm_topk_prob=True, moe_intermediate_size=24, **ids), **plain(10000.0)), torch.bfloat16),
    ("olmoe", OlmoeForCausalLM, OlmoeConfig(
        **shape(32, 24, 4, 2, num_experts=6, num_experts_per_tok=3, **ids), **plain(10000.0)),
     torch.bfloat16),
    ("granite-moe", GraniteMoeForCausalLM, GraniteMoeConfig(
        **shape(32, 40, 4, 2, attention_multiplier=0.3, embedding_multiplier=3.0, residual_multiplier=0.4,
                logits_scaling=0.7, tie_word_embeddings=True, num_local_experts=5, num_experts_per_tok=2,
                **ids), **plain(10000.0)), torch.bfloat16),
    ("glm4-moe", Glm4MoeForCausalLM, Glm4MoeConfig(
        **shape(32, 40, 4, 2, layers=3, head_dim=16, attention_bias=True, use_qk_norm=True,
                n_routed_experts=6, num_experts_per_tok=3, moe_intermediate_size=24, n_shared_experts=2,
                first_k_dense_replace=1, routed_scaling_factor=1.5, **ids), **plain(10000.0)),
     torch.bfloat16),
    ("gpt-oss", GptOssForCausalLM, GptOssConfig(
        **shape(32, 64, 4, 2, layers=3, head_dim=16, num_local_experts=5, num_experts_per_tok=2,
                sliding_window=40, **ids),
        **plain(150000.0, rope_type="yarn", factor=4.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
                original_max_position_embeddings=64)), torch.bfloat16),
    ("gpt-oss-mxfp4", GptOssForCausalLM, GptOssConfig(
        **shape(32, 64, 4, 2, head_dim=16, num_local_experts=5, num_experts_per_tok=2, sliding_window=40,
                **ids), **plain(150000.0)), torch.bfloat16),
    ("qwen3-moe-dense", Qwen3MoeForCausalLM, Qwen3MoeConfig(
        **shape(32, 40, 4, 2, layers=4, head_dim=8, num_experts=4, num_experts_per_tok=1,
                moe_intermediate_size=24, decoder_sparse_step=2, mlp_only_layers=[3], **ids),
        **plain(10000.0)), torch.bfloat16),
    ("starcoder2", Starcoder2ForCausalLM, Starcoder2Config(
        **shape(32, 40, 4, 2, eps="norm_epsilon", tie_word_embeddings=True, sliding_window=40, **ids),
        **plain(10000.0)), torch.bfloat16),
    ("phi", PhiForCausalLM, PhiConfig(
        **shape(32, 40, 2, 2, eps="layer_norm_eps", **ids), **plain(10000.0)), torch.bfloat16),
    ("gpt-neox", GPTNeoXForCausalLM, GPTNeoXConfig(
        **shape(32, 40, 2, 2, eps="layer_norm_eps", **ids), **plain(10000.0)), torch.bfloat16),
    ("gpt-neox-serial", GPTNeoXForCausalLM, GPTNeoXConfig(
        **shape(32, 40, 2, 2, eps="layer_norm_eps", use_parallel_residual=False, **ids), **plain(10000.0)),
     torch.bfloat16),
]:
    MODELS[name] = (model_class, config, dtype, byte_level(split(QWEN_2), normalizers.NFC()))
OLD_STYLE = ["llama3", "qwen2", "smollm2", "qwen2-window", "granite", "glm4", "stablelm", "command-r", "phi3",
             "qwen3-yarn"]
GGUF = {"llama2": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma": "gemma", "gemma2": "gemma2",
        "gemma3": "gemma3", "granite": "granite", "olmo2": "olmo2", "smollm3": "smollm3", "phi3-short": "phi3",
        "mixtral": "llama", "qwen2-moe": "qwen2moe", "qwen3-moe": "qwen3moe", "olmoe": "olmoe",
        "granite-moe": "granitemoe", "gpt-oss": "gpt-oss", "gpt-oss-mxfp4": "gpt-oss"}
# Of these the converter permutes q and k.
INTERLEAVED = ["llama", "granite", "granitemoe", "smollm3"]
GEMMA = ["gemma", "gemma2", "gemma3"]
NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up",
    "pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp", "mlp.router": "ffn_gate_inp", "block_sparse_moe.router": "ffn_gate_inp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp", "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp", "mlp.shared_expert.down_proj": "ffn_down_shexp",
}


def older(config):
    parameters = config.pop("rope_parameters")
    config["torch_dtype"] = config.pop("dtype")
    config["rope_theta"] = parameters.pop("rope_theta")
    if "partial_rotary_factor" in parameters:
        config["partial_rotary_factor"] = parameters.pop("partial_rotary_factor")
    config["rope_scaling"] = None if parameters["rope_type"] == "default" else parameters
    config.pop("layer_types", None)
    return config


def gguf_name(name, architecture):
    outer = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in outer:
        return outer[name]
    layer, rest = name.removeprefix("model.layers.").split(".", 1)
    module, kind = rest.rsplit(".", 1)
    if name.endswith("self_attn.sinks"):
        return f"blk.{layer}.attn_sinks.weight"
    if module == "post_attention_layernorm" and architecture in ["gemma2", "gemma3", "olmo2", "gpt-oss"]:
        return f"blk.{layer}.post_attention_norm.{kind}"
    return f"blk.{layer}.{NAMES[module]}.{kind}"


def interleaved(weight, n_heads):
    """GGUF's llama layout rotates elements 2i and 2i + 1; transformers' i and i + half."""
    rows, columns = weight.shape
    return weight.reshape(n_heads, 2, rows // n_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def quantize_experts(model):
    """Random MXFP4 weights for the experts of a gpt-oss, by the parameter's name: codes `[experts, outputs,
    blocks, 32]` and exponents `[experts, outputs, blocks]`; the model gets what they stand for."""
    quantized = {}
    for key, parameter in model.named_parameters():
        if key.endswith((".gate_up_proj", ".experts.down_proj")):
            experts, inputs, outputs = parameter.shape
            codes = torch.randint(0, 16, (experts, outputs, inputs // 32, 32), dtype=torch.uint8)
            exponents = torch.randint(122, 126, (experts, outputs, inputs // 32), dtype=torch.uint8)
            weights = FP4[codes.int()] * torch.exp2(exponents.float() - 127)[..., None]
            parameter.data = weights.reshape(experts, outputs, inputs).transpose(1, 2).contiguous()
            quantized[key] = (codes, exponents)
    return quantized


def store_quantized(folder, quantized):
    """As OpenAI's checkpoints have them: element 2 i of a block in the low half of byte i."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for key, (codes, exponents) in quantized.items():
        del tensors[key]
        tensors[f"{key}_blocks"] = codes[..., ::2] | codes[..., 1::2] << 4
        tensors[f"{key}_scales"] = exponents
    save_file(tensors, path, metadata={"format": "pt"})
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    path.write_text(json.dumps(settings, indent=1) + "\n")


def gguf_blocks(codes, exponents):
    """GGUF's order: an exponent, then element i in the low half of byte i and i + 16 in the high one."""
    blocks = torch.cat([exponents[..., None], codes[..., :16] | codes[..., 16:] << 4], dim=-1)
    return numpy.ascontiguousarray(blocks.flatten(2).numpy())


def of_experts(key, tensor, architecture):
    """The tensors of all experts that a converter makes of one of transformers'."""
    kind = "bias" if key.endswith("_bias") else "weight"
    if architecture == "gpt-oss":
        # Columns are outputs, gates and ups in turns.
        rows = tensor if kind == "bias" else tensor.transpose(1, 2)
        gate, up = rows[:, ::2], rows[:, 1::2]
    else:
        rows = tensor
        gate, up = rows.chunk(2, dim=1)
    if "gate_up_proj" in key:
        return [(f"ffn_gate_exps.{kind}", gate), (f"ffn_up_exps.{kind}", up)]
    return [(f"ffn_down_exps.{kind}", rows)]


def add(writer, name, tensor):
    data = numpy.ascontiguousarray(tensor.float().numpy())
    kind = None
    # Converters keep vectors, biases and routers in f32.
    if tensor.ndim > 1 and tensor.dtype == torch.bfloat16 and ".bias" not in name and "_inp" not in name:
        data = (data.view(numpy.uint32) >> 16).astype(numpy.uint16).view(numpy.uint8)
        kind = gguf.GGMLQuantizationType.BF16
    if name.endswith("ffn_gate_inp_shexp.weight"):
        data = data[0]
    writer.add_tensor(name, data, raw_dtype=kind)


def write_gguf(name, model, config, tokenizer, quantized):
    architecture = GGUF[name]
    writer = gguf.GGUFWriter(here / f"{name}.gguf", architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    writer.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])
    if "partial_rotary_factor" in rope:
        head_dim = config.hidden_size // config.num_attention_heads
        writer.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
    if getattr(config, "sliding_window", None) and architecture in GEMMA:
        writer.add_sliding_window(config.sliding_window)
    if architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if architecture == "gpt-oss":
        writer.add_sliding_window(config.sliding_window)
    n_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if n_experts:
        writer.add_expert_count(n_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        width = getattr(config, "moe_intermediate_size", config.intermediate_size)
        if architecture in ["qwen2moe", "qwen3moe", "gpt-oss"]:
            writer.add_expert_feed_forward_length(width)
        if architecture == "qwen2moe":
            writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)
    if architecture in ["granite", "granitemoe"]:
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    vocabulary = {i: token for token, i in tokenizer.get_vocab().items()}
    tokens = [vocabulary.get(i, f"[unused{i}]") for i in range(config.vocab_size)]
    special = {"<unk>": 2, "<s>": 3, "</s>": 3, "<|end|>": 3, "<tool>": 4, "</tool>": 4}
    writer.add_token_list(tokens)
    model_json = json.loads(tokenizer.to_str())["model"]
    if model_json["byte_fallback"]:
        ranks = {"".join(pair): rank for rank, pair in enumerate(model_json["merges"])}
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(ranks.get(token, 1000)) for token in tokens])
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges([" ".join(pair) for pair in model_json["merges"]])
    kinds = [special.get(token, 1 if i in vocabulary else 5) for i, token in enumerate(tokens)]
    writer.add_token_types(kinds)
    writer.add_eos_token_id(tokens.index("</s>"))
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture in INTERLEAVED and (".q_proj." in key or ".k_proj." in key):
            n_heads = config.num_attention_heads if ".q_proj." in key else config.num_key_value_heads
            tensor = torch.from_numpy(interleaved(tensor.float().numpy(), n_heads)).to(tensor.dtype)
        if architecture in GEMMA and "norm" in key:
            tensor = tensor.float() + 1
        if key in quantized:
            layer = key.removeprefix("model.layers.").split(".", 1)[0]
            codes, exponents = quantized[key]
            rows = {"down": slice(None)}
            if "gate_up" in key:
                rows = {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
            for part, rows in rows.items():
                blocks = gguf_blocks(codes[:, rows], exponents[:, rows])
                writer.add_tensor(f"blk.{layer}.ffn_{part}_exps.weight", blocks,
                                  raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        elif ".experts." in key:
            for part, of_part in of_experts(key, tensor, architecture):
                layer = key.removeprefix("model.layers.").split(".", 1)[0]
                add(writer, f"blk.{layer}.{part}", of_part)
        else:
            add(writer, gguf_name(key, architecture), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write(name, number):
    model_class, config, dtype, tokenizer = MODELS[name]
    folder = here / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(2000 + number)
    model = model_class(config).float().eval()
    for key, parameter in model.named_parameters():
        if key.endswith("bias") or key.endswith("sinks"):
            parameter.data = 0.3 * torch.randn_like(parameter)
        elif "norm" in key:
            parameter.data = (0.0 if name in GEMMA else 1.0) + 0.2 * torch.randn_like(parameter)
    for key, buffer in model.named_buffers():
        if key.endswith("e_score_correction_bias"):
            buffer.data = 0.3 * torch.randn_like(buffer)
    quantized = quantize_experts(model) if name == "gpt-oss-mxfp4" else {}
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size="30KB" if name == "smollm2" else "1GB")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [tokenizer.token_to_id("</s>")], "temperature": 0.6, "top_p": 0.9}) + "\n")
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings.pop("transformers_version")
    if name in OLD_STYLE:
        settings = older(settings)
    path.write_text(json.dumps(settings, indent=1) + "\n")
    (folder / "tokenizer.json").write_text(tokenizer.to_str() + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<s>" if tokenizer.post_processor else None, "eos_token": {"content": "</s>"},
        "chat_template": "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}"}) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)
    if name in GGUF:
        write_gguf(name, model, config, tokenizer, quantized)
    # Read back: a cast there and back would leave the frequencies of the rotation rounded.
    model = model_class.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, config.vocab_size, (1, 150))
    with torch.no_grad():
        logits = model(ids, past_key_values=Bf16Cache(), use_cache=True).logits[0]
    golden = {
        "ids": ids[0].tolist(),
        "logits": {row: [round(float(value), 4) for value in logits[row]] for row in ROWS},
        "texts": TEXTS,
        "tokens": [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS],
    }
    if quantized:
        store_quantized(folder, quantized)
    (here / f"{name}.json").write_text(json.dumps(golden, separators=(",", ":"), ensure_ascii=False) + "\n")


for number, name in enumerate(MODELS):
    if name in (sys.argv[1:] or MODELS):
        write(name, number)
