"""Blocks of every quantization of GGUF that Arbora reads, with the weights the `gguf` package makes of them.

    python quants.py        (needs gguf, numpy)

Writes `quants.json`: of each format its name, `blocks` (hex, one a block) and `weights` (hex of f32, little
endian, one a block). The bytes are random, the halves among them finite; two blocks more are all zeros and
all ones but for the halves.
"""

import json
import pathlib

import gguf
import numpy as np
from gguf.quants import dequantize

here = pathlib.Path(__file__).parent
# Where the f16 numbers of a block are.
HALVES = {
    "Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [], "TQ1_0": [52], "TQ2_0": [64],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0],
}
random = np.random.default_rng(2)
formats = []
for name, halves in HALVES.items():
    kind = gguf.GGMLQuantizationType[name]
    _, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (5, block_bytes), dtype=np.uint8)
    blocks[3], blocks[4] = 0, 255
    for at in halves:
        values = (random.normal(size=(5, 1)) * [[1], [1e-3], [1e-7], [1], [1]]).astype("<f2")
        blocks[:, at:at + 2] = values.view(np.uint8)
    if name == "MXFP4":
        # Above, 12 times the scale is infinite.
        blocks[:, 0] = np.minimum(blocks[:, 0], 252)
    weights = dequantize(blocks, kind).astype("<f4")
    assert np.isfinite(weights).all(), name
    formats.append({
        "name": name,
        "blocks": [block.tobytes().hex() for block in blocks],
        "weights": [row.tobytes().hex() for row in weights],
    })
(here / "quants.json").write_text(json.dumps(formats, separators=(",", ":")).replace("},{", "},\n{") + "\n")
