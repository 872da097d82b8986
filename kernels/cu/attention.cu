// Rotation of queries and keys with the write to the paged KV cache, and attention over it.
//
//   kv: [layer][page][keys, values][kv head][token of the page][element], bf16
#include "common.cuh"

constexpr u32 BLOCK = 64;  // tokens of an absolute block (C2)

struct Heads { u32 n_heads, n_kv_heads, head_dim; };

__device__ __forceinline__ u64 token_at(Heads heads, u32 page_size, u64 slot, u32 is_value, u32 kv_head) {
  u64 page = slot / page_size, offset = slot % page_size;
  return (((page * 2 + is_value) * heads.n_kv_heads + kv_head) * page_size + offset) * heads.head_dim;
}

// Grid: rows, heads of a qkv row. `layer` is the layer's part of the pool; `cos_sin` may be null.
extern "C" __global__ void __launch_bounds__(128) rope_store(float* qkv, const float* __restrict__ cos_sin,
    u32 rope_dim, u32 interleaved, const u32* __restrict__ positions, const u32* __restrict__ slots, u16* layer,
    u32 n_heads, u32 n_kv_heads, u32 head_dim, u32 page_size) {
  Heads heads = {n_heads, n_kv_heads, head_dim};
  u32 row = blockIdx.x, head = blockIdx.y, n_rotated = heads.n_heads + heads.n_kv_heads;
  float* x = qkv + ((u64)row * (n_rotated + heads.n_kv_heads) + head) * heads.head_dim;
  if (cos_sin && head < n_rotated) {
    u32 n_pairs = rope_dim / 2;
    const float* table = cos_sin + (u64)positions[row] * rope_dim;
    for (u32 pair = threadIdx.x; pair < n_pairs; pair += blockDim.x) {
      u32 first = interleaved ? 2 * pair : pair, second = interleaved ? first + 1 : pair + n_pairs;
      float c = table[2 * pair], s = table[2 * pair + 1], a = x[first], b = x[second];
      x[first] = a * c - b * s;
      x[second] = b * c + a * s;
    }
  }
  if (head < heads.n_heads) return;
  __syncthreads();  // keys are read below by other threads than those that rotated them
  u32 is_value = head >= n_rotated, kv_head = head - (is_value ? n_rotated : heads.n_heads);
  u16* to = layer + token_at(heads, page_size, slots[row], is_value, kv_head);
  for (u32 i = threadIdx.x; i < heads.head_dim; i += blockDim.x) to[i] = to_bf16(x[i]);
}

// Grid: rows, kv heads. A block serves the query heads of one kv head of one row, so that its result depends
// on nothing else (C1). Blocks of BLOCK tokens are reduced from a fresh state and merged in ascending order
// (C2):
//   block:  m' = max_t s_t, p_t = exp(s_t - m'), l' = sum_t p_t, o' = sum_t p_t v_t
//   merge:  m'' = max(m, m'), l = l exp(m - m'') + l' exp(m' - m''), o likewise
// Dynamic shared memory, group = n_heads / n_kv_heads, floats:
//   q [group][head_dim], o [group][head_dim], p [group][BLOCK], then m, l, old factor, new factor [group] each
extern "C" __global__ void __launch_bounds__(128) attention(const float* __restrict__ qkv,
    const u16* __restrict__ layer, const u32* __restrict__ limits, const u32* __restrict__ tables,
    const u32* __restrict__ pages, float* __restrict__ out, u32 n_heads, u32 n_kv_heads, u32 head_dim,
    u32 page_size, u32 window, float scale, float soft_cap) {
  Heads heads = {n_heads, n_kv_heads, head_dim};
  extern __shared__ float shared[];
  u32 row = blockIdx.x, kv_head = blockIdx.y, group = heads.n_heads / heads.n_kv_heads, dim = heads.head_dim;
  float *q = shared, *o = q + group * dim, *p = o + group * dim, *m = p + group * BLOCK, *l = m + group;
  float *old_factor = l + group, *new_factor = old_factor + group;
  u64 width = (u64)(heads.n_heads + 2 * heads.n_kv_heads) * dim;
  const float* queries = qkv + row * width + (u64)kv_head * group * dim;
  for (u32 i = threadIdx.x; i < group * dim; i += blockDim.x) {
    q[i] = queries[i];
    o[i] = 0.f;
  }
  for (u32 i = threadIdx.x; i < group; i += blockDim.x) {
    m[i] = MINUS_INFINITY;
    l[i] = 0.f;
  }
  u32 limit = limits[row], begin = window && limit > window ? limit - window : 0;
  const u32* table = pages + tables[row];
  for (u32 block = begin / BLOCK; block * BLOCK < limit; block++) {
    u32 first = max(block * BLOCK, begin), last = min(block * BLOCK + BLOCK, limit), n = last - first;
    __syncthreads();  // q and o are there; p and the factors are free
    for (u32 i = threadIdx.x; i < group * n; i += blockDim.x) {
      u32 head = i / n, t = first + i % n;
      u64 slot = (u64)table[t / page_size] * page_size + t % page_size;
      const u16* key = layer + token_at(heads, page_size, slot, 0, kv_head);
      float dot = 0.f;
      for (u32 d = 0; d < dim; d++) dot = fmaf(q[head * dim + d], from_bf16(key[d]), dot);
      dot *= scale;
      p[head * BLOCK + i % n] = soft_cap > 0.f ? soft_cap * tanhf(dot / soft_cap) : dot;
    }
    __syncthreads();
    for (u32 head = threadIdx.x; head < group; head += blockDim.x) {
      float most = MINUS_INFINITY, sum = 0.f;
      for (u32 t = 0; t < n; t++) most = fmaxf(most, p[head * BLOCK + t]);
      for (u32 t = 0; t < n; t++) {
        float weight = expf(p[head * BLOCK + t] - most);
        p[head * BLOCK + t] = weight;
        sum += weight;
      }
      float merged = fmaxf(m[head], most);
      old_factor[head] = expf(m[head] - merged);
      new_factor[head] = expf(most - merged);
      l[head] = l[head] * old_factor[head] + sum * new_factor[head];
      m[head] = merged;
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < group * dim; i += blockDim.x) {
      u32 head = i / dim;
      float sum = 0.f;
      for (u32 t = first; t < last; t++) {
        u64 slot = (u64)table[t / page_size] * page_size + t % page_size;
        u16 value = layer[token_at(heads, page_size, slot, 1, kv_head) + i % dim];
        sum = fmaf(p[head * BLOCK + t - first], from_bf16(value), sum);
      }
      o[i] = o[i] * old_factor[head] + sum * new_factor[head];
    }
  }
  __syncthreads();
  float* to = out + (u64)row * heads.n_heads * dim + (u64)kv_head * group * dim;
  for (u32 i = threadIdx.x; i < group * dim; i += blockDim.x) to[i] = o[i] / l[i / dim];
}
