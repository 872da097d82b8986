"""Tiny checkpoints with quantized matrices as GPTQ, AWQ, compressed-tensors and fp8 store them, with every
weight by the formula of their reference implementations and the logits of a model with those weights.

    python packed.py        (needs torch, transformers, safetensors)

Writes of each scheme a folder `packed/NAME` (`config.json`, `model.safetensors`) and in `packed.json` of each
its `ids`, `logits` of all positions rounded to 1e-4, `n_bits` of a weight in memory and `hashes`: FNV-1a (64
bits) of the little-endian f32 of each dequantized matrix, outputs first. Integers, scales, zero points and
orders are random, so nothing is said of how good a quantization is.

Reference formulas: AutoGPTQ `qlinear_cuda_old.py` (zero points of v1 are stored less 1), AutoAWQ
`packing_utils.py` (the order of 8 nibbles), compressed-tensors `pack_to_int32` and `dequantize`, DeepSeek-V3
`kernel.py` (`weight_dequant`).
"""

import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

here = pathlib.Path(__file__).parent
WIDTH, FFN, VOCAB, KV = 128, 128, 64, 64
CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": FFN,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
    "vocab_size": VOCAB, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": True, "torch_dtype": "float16", "hidden_act": "silu", "bos_token_id": 1,
    "eos_token_id": 2,
}
LINEARS = {
    "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (WIDTH, KV), "self_attn.v_proj": (WIDTH, KV),
    "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (WIDTH, FFN), "mlp.up_proj": (WIDTH, FFN),
    "mlp.down_proj": (FFN, WIDTH),
}
# What has the same inputs has the same order.
INPUTS = {"q": 0, "k": 0, "v": 0, "o": 1, "g": 2, "u": 2, "d": 3}
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]


def pack(values, bits, dim, order=None):
    """Integers below 2^bits as words of 32 bits, along `dim`."""
    n = 32 // bits
    values = values.movedim(dim, -1).long()
    values = values.reshape(*values.shape[:-1], -1, n)
    words = torch.zeros(values.shape[:-1], dtype=torch.int64)
    for place in range(n):
        words |= values[..., order[place] if order else place] << (bits * place)
    words = torch.where(words >= 2 ** 31, words - 2 ** 32, words)
    return words.to(torch.int32).movedim(-1, dim).contiguous()


def integers(n_in, n_out, bits, group, symmetric):
    """Quants [n_in, n_out], scales and zero points [n_groups, n_out]."""
    n_groups = n_in // group
    quants = torch.randint(0, 2 ** bits, (n_in, n_out))
    scales = (0.5 + torch.rand(n_groups, n_out)) * (1.5 / 2 ** bits / n_in ** 0.5 * 4)
    middle = 2 ** (bits - 1)
    zeros = torch.full((n_groups, n_out), middle)
    if not symmetric:
        zeros = torch.randint(middle - middle // 2, middle + middle // 2, (n_groups, n_out))
    return quants, scales, zeros


def group_order(name, n_in, group, act_order):
    plain = torch.arange(n_in) // group
    if not act_order:
        return plain
    generator = torch.Generator().manual_seed(INPUTS[name.split(".")[1][0]])
    return plain[torch.randperm(n_in, generator=generator)]


def gptq(name, n_in, n_out, bits=4, group=32, sym=True, act_order=False, v2=False):
    quants, scales, zeros = integers(n_in, n_out, bits, group, sym)
    if not sym and not v2:
        # Both ends of what v1 can store.
        zeros[0, :2] = torch.tensor([1, 2 ** bits])
    scales = scales.half()
    g_idx = group_order(name, n_in, group, act_order)
    weight = scales.float()[g_idx] * (quants - zeros[g_idx]).float()
    parts = {
        "qweight": pack(quants, bits, 0), "qzeros": pack(zeros - (0 if v2 else 1), bits, 1), "scales": scales,
        "g_idx": g_idx.int(),
        # Some writers add one to every matrix.
        "bias": torch.zeros(n_out).half(),
    }
    return parts, weight.T


def gptq_config(bits=4, group=32, sym=True, act_order=False, v2=False):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": act_order,
            "checkpoint_format": "gptq_v2" if v2 else "gptq", "lm_head": False}


def awq(name, n_in, n_out, group):
    quants, scales, zeros = integers(n_in, n_out, 4, group, False)
    zeros[0, :2] = torch.tensor([0, 15])
    scales = scales.half()
    g = torch.arange(n_in) // group
    weight = scales.float()[g] * (quants - zeros[g]).float()
    parts = {"qweight": pack(quants, 4, 1, AWQ_ORDER), "qzeros": pack(zeros, 4, 1, AWQ_ORDER), "scales": scales}
    return parts, weight.T


def awq_config(group):
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm",
            "modules_to_not_convert": None}


def compressed(name, n_in, n_out, bits=4, group=128, sym=True, act_order=False):
    quants, scales, zeros = integers(n_in, n_out, bits, group, sym)
    scales = scales.bfloat16()
    g_idx = group_order(name, n_in, group, act_order)
    weight = scales.float()[g_idx] * (quants - zeros[g_idx]).float()
    parts = {"weight_packed": pack(quants.T, bits, 1), "weight_scale": scales.T.contiguous(),
             "weight_shape": torch.tensor([n_out, n_in])}
    if not sym:
        parts["weight_zero_point"] = pack(zeros.T, bits, 0)
    if act_order:
        parts["weight_g_idx"] = g_idx.int()
    return parts, weight.T


def int8(name, n_in, n_out):
    quants, scales, _ = integers(n_in, n_out, 8, n_in, True)
    scales = scales.bfloat16()
    weight = scales.float() * (quants - 128).float()
    return {"weight": (quants - 128).to(torch.int8).T.contiguous(), "weight_scale": scales.T.contiguous()}, weight.T


def compressed_config(form, weights):
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": None,
               "dynamic": False, "actorder": None, "block_structure": None} | weights
    return {"quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
            "ignore": ["lm_head"], "kv_cache_scheme": None, "sparsity_config": {},
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}}


def fp8(name, n_in, n_out, scale, part, block=None):
    values = (torch.randn(n_out, n_in) * 60).clamp(-448, 448).to(torch.float8_e4m3fn)
    shape = {"tensor": (), "channel": (n_out, 1), "block": None}[scale]
    if scale == "block":
        shape = (-(-n_out // block[0]), -(-n_in // block[1]))
    dtype = torch.float32 if part == "weight_scale_inv" or scale == "tensor" else torch.bfloat16
    scales = ((0.5 + torch.rand(shape)) / 60 / n_in ** 0.5).to(dtype)
    each = scales.float()
    if scale == "block":
        each = each.repeat_interleave(block[0], 0)[:n_out].repeat_interleave(block[1], 1)[:, :n_in]
    weight = (values.float() * each).bfloat16().float()
    parts = {"weight": values, part: scales}
    if scale == "tensor":
        parts["input_scale"] = torch.tensor(0.5)
    return parts, weight


SCHEMES = {
    "gptq": (gptq, dict(), gptq_config(), 4.5),
    "gptq-act-order": (gptq, dict(act_order=True), gptq_config(act_order=True), 4.5),
    "gptq-act-order-zeros": (gptq, dict(group=64, sym=False, act_order=True),
                             gptq_config(group=64, sym=False, act_order=True), 5.25),
    "gptq-v2": (gptq, dict(group=128, sym=False, v2=True), gptq_config(group=-1, sym=False, v2=True), 4.5),
    "gptq-8": (gptq, dict(bits=8), gptq_config(bits=8), 8.5),
    "gptq-8-zeros": (gptq, dict(bits=8, group=64, sym=False), gptq_config(bits=8, group=64, sym=False), 9.25),
    "awq-128": (awq, dict(group=128), awq_config(128), 4.5),
    "awq-64": (awq, dict(group=64), awq_config(64), 5.25),
    "w4a16": (compressed, dict(), compressed_config("pack-quantized", dict(group_size=128)), 4.5),
    "w4a16-zeros": (compressed, dict(group=32, sym=False),
                    compressed_config("pack-quantized", dict(group_size=32, symmetric=False)), 5.25),
    "w4a16-act-order": (compressed, dict(group=32, act_order=True),
                        compressed_config("pack-quantized", dict(group_size=32, actorder="group")), 4.5),
    "w8a16": (compressed, dict(bits=8, group=32),
              compressed_config("pack-quantized", dict(num_bits=8, group_size=32)), 8.5),
    "w8a8": (int8, dict(), compressed_config("int-quantized", dict(num_bits=8, strategy="channel")), 8.5),
    "fp8-channel": (fp8, dict(scale="channel", part="weight_scale"),
                    compressed_config("float-quantized", dict(num_bits=8, type="float", strategy="channel")), 16),
    "fp8-tensor": (fp8, dict(scale="tensor", part="weight_scale"),
                   {"quant_method": "fp8", "activation_scheme": "static"}, 16),
    "fp8-block": (fp8, dict(scale="block", part="weight_scale_inv", block=(48, 64)),
                  {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [48, 64],
                   "activation_scheme": "dynamic"}, 16),
}


def fnv(tensor):
    hash = 0xcbf29ce484222325
    # Adding 0 takes the sign off zeros.
    for byte in (tensor.float().contiguous() + 0.0).numpy().astype("<f4").tobytes():
        hash = (hash ^ byte) * 0x100000001b3 & 0xffffffffffffffff
    return f"{hash:016x}"


shutil.rmtree(here / "packed", ignore_errors=True)
golden = {}
for seed, (name, (make, arguments, quantization, n_bits)) in enumerate(SCHEMES.items()):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**CONFIG)).eval()
    tensors, hashes = {}, {}
    state = {}
    for key, value in model.state_dict().items():
        if "proj" in key or key == "lm_head.weight":
            continue
        value = torch.randn(value.shape) * 0.5 if "embed" in key else 0.75 + torch.rand(value.shape) / 2
        tensors[key] = value.half()
        state[key] = value.half().float()
    for linear, (n_in, n_out) in LINEARS.items():
        parts, weight = make(f"x.{linear.split('.')[1]}", n_in, n_out, **arguments)
        stem = f"model.layers.0.{linear}"
        tensors |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
        state[f"{stem}.weight"] = weight.contiguous()
        hashes[f"{stem}.weight"] = fnv(weight)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model.load_state_dict(state)
    ids = torch.randint(0, VOCAB, (1, 24))
    with torch.no_grad():
        logits = model.float()(ids).logits[0]
    folder = here / "packed" / name
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": quantization}, indent=1) + "\n")
    golden[name] = {
        "ids": ids[0].tolist(), "logits": [[round(x, 4) for x in row] for row in logits[::4].tolist()],
        "n_bits": n_bits, "hashes": hashes,
    }
(here / "packed.json").write_text(json.dumps(golden, separators=(",", ":")).replace("},\"", "},\n\"") + "\n")
