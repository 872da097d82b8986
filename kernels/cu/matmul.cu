// out[r][first_out + o] = bias[o] + sum_k x[r][k] w[o][k] in f32, k in ascending order for every shape (C1).
#include "common.cuh"

constexpr int TILE = 32;        // rows, outputs and depth of a tile
constexpr int PER_THREAD = 4;   // rows that a thread computes

// Grid: tiles of outputs, tiles of rows. Block: TILE x TILE / PER_THREAD threads.
extern "C" __global__ void __launch_bounds__(TILE * TILE / PER_THREAD) matmul(const float* __restrict__ x,
    const void* __restrict__ w, u32 format, const float* __restrict__ bias, float* __restrict__ out,
    u32 n_rows, u32 n_in, u32 n_out, u32 first_out, u32 out_width) {
  __shared__ float xs[TILE][TILE + 1];
  __shared__ float ws[TILE][TILE + 1];
  u32 column = threadIdx.x % TILE, first = threadIdx.x / TILE * PER_THREAD;
  u32 row0 = blockIdx.y * TILE, out0 = blockIdx.x * TILE;
  float sum[PER_THREAD] = {0.f, 0.f, 0.f, 0.f};
  for (u32 k0 = 0; k0 < n_in; k0 += TILE) {
    u32 k = k0 + column;
#pragma unroll
    for (u32 i = first; i < first + PER_THREAD; i++) {
      bool in_depth = k < n_in;
      xs[i][column] = in_depth && row0 + i < n_rows ? x[(u64)(row0 + i) * n_in + k] : 0.f;
      ws[i][column] = in_depth && out0 + i < n_out ? weight_at(w, format, (u64)(out0 + i) * n_in + k) : 0.f;
    }
    __syncthreads();
    u32 depth = n_in - k0 < TILE ? n_in - k0 : TILE;
    for (u32 j = 0; j < depth; j++) {
      float weight = ws[column][j];
#pragma unroll
      for (int i = 0; i < PER_THREAD; i++) sum[i] = fmaf(xs[first + i][j], weight, sum[i]);
    }
    __syncthreads();
  }
  u32 o = out0 + column;
  if (o >= n_out) return;
  float add = bias ? bias[o] : 0.f;
#pragma unroll
  for (int i = 0; i < PER_THREAD; i++)
    if (row0 + first + i < n_rows) out[(u64)(row0 + first + i) * out_width + first_out + o] = sum[i] + add;
}
