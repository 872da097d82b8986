"""The grids of IQ2 and IQ3 as Rust constants: `kernels/src/quant/grids.rs`.

    python grids.py > ../../kernels/src/quant/grids.rs      (needs gguf, numpy; then cargo fmt)

A grid has 8 (IQ2) or 4 (IQ3) magnitudes an entry, of 3 or 8 there are: 2 or 4 bits of a u16 each, the first
lowest.
"""

import numpy as np
from gguf import quants

NAMES = ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]
print("""//! Grids of the IQ2 and IQ3 quantizations: which magnitudes stand together.
//!
//! An entry has 8 magnitudes of 2 bits (IQ2) or 4 of 4 bits (IQ3), the first in the lowest bits; what they
//! stand for is in the tables of values. Made by `tests/golden/grids.py`.
//!
//! Source: ggml's `ggml-common.h`, as in the `gguf` package.
""")
for name in NAMES:
    kind = getattr(quants, name)
    kind.init_grid()
    n_entries, n_values = kind.grid_shape
    index = {value: i for i, value in enumerate(kind.grid_map)}
    grid = np.array([index[int(value)] for value in kind.grid.reshape(-1)]).reshape(n_entries, n_values)
    words = (grid << (np.arange(n_values) * (16 // n_values))).sum(axis=1)
    print(f"/// {n_entries} entries of {name}.\npub(super) const {name}: [u16; {n_entries}] = [")
    for start in range(0, n_entries, 12):
        print("    " + " ".join(f"{word:#06x}," for word in words[start:start + 12]))
    print("];\n" if name != "IQ3_S" else "];")
