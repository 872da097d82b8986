// Drawing a token of each row of logits, exactly as SampleRow says: allowed tokens, adjustments, temperature,
// top-k, top-p, min-p, then the inverse of the cumulative distribution, likeliest first.
//
// Nothing is sorted. Each token has a 64-bit key, its logit above its inverted id, so that a larger key is an
// earlier token; what is cut off and what is drawn are keys, found bit by bit with sums over the row.
#include "common.cuh"

// As in kernels/src/cuda/sample.rs.
struct SampleRow {
  u64 noise;
  u32 allowed_kind, first_allowed, n_allowed;
  u32 first_adjustment, n_adjustments;
  u32 top_k;
  float temperature, top_p, min_p;
  u32 unused;
};
struct Adjustment { u32 token; float divisor, shift; };

constexpr u32 ALLOWED_ALL = 0;
constexpr u32 ALLOWED_IDS = 1;
constexpr u32 NO_TOKEN = 0xffffffffu;
constexpr u64 FIRST_KEY = 1ull << 32;  // keys of finite logits are above

__device__ __forceinline__ bool is_finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// Larger for larger logits, and for smaller ids among equals; never 0. The two zeros are equal.
__device__ __forceinline__ u64 key_of(float logit, u32 id) {
  u32 bits = __float_as_uint(logit == 0.f ? 0.f : logit);
  u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
  return (u64)ordered << 32 | ~id;
}

__device__ __forceinline__ float logit_of(u64 key) {
  u32 ordered = (u32)(key >> 32);
  return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

struct Row {
  const float* logits;  // adjusted; tokens that are out are minus infinity
  u32 n;
  float largest, temperature;
  double* scratch;

  __device__ __forceinline__ double weight(float logit) const { return exp(((double)logit - (double)largest) / (double)temperature); }

  // Sum of the weights of the tokens with from <= key.
  __device__ __forceinline__ double sum_from(u64 from) const {
    double sum = 0.0;
    for (u32 id = threadIdx.x; id < n; id += blockDim.x)
      if (is_finite(logits[id]) && key_of(logits[id], id) >= from) sum += weight(logits[id]);
    return block_sum(sum, scratch);
  }

  __device__ __forceinline__ double count_from(u64 from) const {
    double count = 0.0;
    for (u32 id = threadIdx.x; id < n; id += blockDim.x)
      if (is_finite(logits[id]) && key_of(logits[id], id) >= from) count += 1.0;
    return block_sum(count, scratch);
  }
};

// The largest key for which `holds`, which is true for small ones and false for large ones and changes only
// beside keys of the n tokens; below FIRST_KEY if for none. The bits of an id that no token has are ones in
// every key, so they are not searched.
template <typename F>
__device__ __forceinline__ u64 last_key(u32 n, F holds) {
  int id_bits = 32 - __clz(n);
  u64 key = 0;
  for (int bit = 63; bit >= 32; bit--)
    if (holds(key | 1ull << bit)) key |= 1ull << bit;
  key |= (u64)(0xffffffffu << id_bits & 0xffffffffu);
  for (int bit = id_bits - 1; bit >= 0; bit--)
    if (holds(key | 1ull << bit)) key |= 1ull << bit;
  return key;
}

// Copies a row of logits to `adjusted` without the tokens that are out.
__device__ __forceinline__ void adjust(const float* logits, float* adjusted, u32 n, const SampleRow& row,
    const u32* __restrict__ ids, const u64* __restrict__ bits, const Adjustment* __restrict__ adjustments) {
  for (u32 id = threadIdx.x; id < n; id += blockDim.x) {
    bool is_in = row.allowed_kind == ALLOWED_ALL ||
        row.allowed_kind != ALLOWED_IDS && (bits[row.first_allowed + id / 64] >> id % 64 & 1);
    adjusted[id] = is_in && is_finite(logits[id]) ? logits[id] : MINUS_INFINITY;
  }
  __syncthreads();
  if (row.allowed_kind == ALLOWED_IDS)
    for (u32 i = threadIdx.x; i < row.n_allowed; i += blockDim.x) {
      u32 id = ids[row.first_allowed + i];
      if (id < n && is_finite(logits[id])) adjusted[id] = logits[id];
    }
  __syncthreads();
  for (u32 i = threadIdx.x; i < row.n_adjustments; i += blockDim.x) {
    Adjustment a = adjustments[row.first_adjustment + i];
    if (a.token >= n) continue;
    float logit = adjusted[a.token];
    // A finite logit that is adjusted to an infinite one is out, too.
    if (is_finite(logit)) adjusted[a.token] = (logit > 0.f ? logit / a.divisor : logit * a.divisor) + a.shift;
  }
  __syncthreads();
}

// Grid: rows. `adjusted` has a row of n floats for each.
extern "C" __global__ void __launch_bounds__(512, 2) sample(const float* __restrict__ logits, float* adjusted, u32 n,
    const SampleRow* __restrict__ rows, const u32* __restrict__ ids, const u64* __restrict__ bits,
    const Adjustment* __restrict__ adjustments, u32* __restrict__ tokens) {
  __shared__ double scratch[MAX_WARPS];
  SampleRow row = rows[blockIdx.x];
  float* mine = adjusted + (u64)blockIdx.x * n;
  adjust(logits + (u64)blockIdx.x * n, mine, n, row, ids, bits, adjustments);
  u64 best = 0;
  for (u32 id = threadIdx.x; id < n; id += blockDim.x) {
    u64 key = is_finite(mine[id]) ? key_of(mine[id], id) : 0;
    best = best < key ? key : best;
  }
  best = block_max(best, (u64*)scratch);
  u64 drawn = best;
  if (best != 0 && row.temperature != 0.f) {
    Row all = {mine, n, logit_of(best), row.temperature, scratch};
    // Keys below `least` are cut off, one filter after the other.
    u64 least = FIRST_KEY;
    if (row.top_k > 0) {
      double k = row.top_k;
      u64 cut = last_key(n, [&](u64 key) { return all.count_from(key) >= k; });
      least = cut > least ? cut : least;
    }
    double total = all.sum_from(least);
    double nucleus = (double)row.top_p * total;
    // The first token that is out: what comes before it has reached the nucleus.
    u64 beyond = last_key(n, [&](u64 key) {
      double before = all.sum_from(key + 1 > least ? key + 1 : least);
      return before > 0.0 && before >= nucleus;
    });
    if (beyond + 1 > least) least = beyond + 1;
    if (row.min_p > 0.f) {
      u64 unlikely = last_key(n, [&](u64 key) { return key < best && all.weight(logit_of(key)) < (double)row.min_p; });
      if (unlikely + 1 > least) least = unlikely + 1;
    }
    double goal = (double)row.noise / 18446744073709551616.0 * all.sum_from(least);
    drawn = last_key(n, [&](u64 key) { return all.sum_from(key > least ? key : least) > goal; });
    // Rounding can leave the whole sum at the goal: the last token is meant.
    if (drawn < least) drawn = last_key(n, [&](u64 key) { return key <= least || all.count_from(least) == all.count_from(key); });
  }
  if (threadIdx.x == 0) tokens[blockIdx.x] = best == 0 ? NO_TOKEN : ~(u32)drawn;
}
