"""Rows of weights and the blocks that reference quantizers make of them.

    python quantize.py LIBGGML_BASE.so        (needs gguf, numpy, and ggml's library for Q4_K)

Writes `quantize.json`: `rows` (hex of little-endian f32, 512 each) and of each format the bytes of each row.
Q8_0 and Q4_0 are the `gguf` package's, Q4_K those of ggml's `quantize_row_q4_K_ref`.
"""

import ctypes
import json
import pathlib
import sys

import gguf
import numpy as np
from gguf.quants import quantize

here = pathlib.Path(__file__).parent
N = 512
random = np.random.default_rng(5)
rows = [random.normal(size=N) * scale for scale in (1, 0.02, 1e-3, 30)]
rows += [random.uniform(low, high, N) for low, high in [(-1, 1), (0, 1), (-3, -1)]]
rows.append(random.standard_cauchy(N) * 0.1)
# Blocks of zeros, of one number, of two, and with one that is far from the others.
special = np.zeros(N)
special[32:64], special[64:96] = 0.7, -0.7
special[96:128:2], special[97:128:2] = 1, -1
special[130], special[200:256], special[256:] = 5, random.normal(size=56), random.normal(size=256) * 0.1
rows.append(special)
rows = np.array(rows, dtype=np.float32)

ggml = ctypes.CDLL(sys.argv[1])


def q4_k(row):
    out = (ctypes.c_uint8 * (N // 256 * 144))()
    ggml.quantize_row_q4_K_ref(row.ctypes.data_as(ctypes.c_void_p), out, ctypes.c_int64(N))
    return bytes(out)


golden = {
    "rows": [row.tobytes().hex() for row in rows],
    "Q8_0": [quantize(row, gguf.GGMLQuantizationType.Q8_0).tobytes().hex() for row in rows],
    "Q4_0": [quantize(row, gguf.GGMLQuantizationType.Q4_0).tobytes().hex() for row in rows],
    "Q4_K": [q4_k(np.ascontiguousarray(row)).hex() for row in rows],
}
(here / "quantize.json").write_text(json.dumps(golden, separators=(",", ":")).replace(",\"Q", ",\n\"Q") + "\n")
