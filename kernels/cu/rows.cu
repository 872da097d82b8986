// Rows of activations: embedding, norms, sums, functions of elements, gather.
#include "common.cuh"

constexpr u32 NORM_RMS = 0;

// out[r] = table[ids[r]] for the ids of this part of a stacked table: first_id and the n_ids after it.
extern "C" __global__ void __launch_bounds__(256) embed(const void* __restrict__ table, u32 format, u32 first_id,
    u32 n_ids, const u32* __restrict__ ids, float* __restrict__ out, u32 width) {
  u32 id = ids[blockIdx.x] - first_id;  // wraps below the part
  if (id >= n_ids) return;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x)
    out[(u64)blockIdx.x * width + i] = weight_at(table, format, (u64)id * width + i);
}

// One row: out = norm(row) * weight + bias, in place where out == row. Every thread has read its elements
// before any is written only of its own, so the two may be the same.
__device__ __forceinline__ void norm_row(const float* row, float* out, u32 width, u32 kind,
    const float* __restrict__ weight, const float* __restrict__ bias, float eps) {
  __shared__ float scratch[MAX_WARPS];
  float center = 0.f;
  if (kind != NORM_RMS) {
    float sum = 0.f;
    for (u32 i = threadIdx.x; i < width; i += blockDim.x) sum += row[i];
    center = block_sum(sum, scratch) / width;
  }
  float sum = 0.f;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
    float x = row[i] - center;
    sum = fmaf(x, x, sum);
  }
  float factor = 1.f / sqrtf(block_sum(sum, scratch) / width + eps);
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) {
    float value = (row[i] - center) * factor * weight[i];
    out[i] = bias ? value + bias[i] : value;
  }
}

extern "C" __global__ void __launch_bounds__(256) norm_rows(const float* __restrict__ x, float* __restrict__ out,
    u32 width, u32 kind, const float* __restrict__ weight, const float* __restrict__ bias, float eps) {
  u64 start = (u64)blockIdx.x * width;
  norm_row(x + start, out + start, width, kind, weight, bias, eps);
}

// residual += delta, out = norm(residual).
extern "C" __global__ void __launch_bounds__(256) add_norm(float* residual, const float* __restrict__ delta,
    float* __restrict__ out, u32 width, u32 kind, const float* __restrict__ weight,
    const float* __restrict__ bias, float eps) {
  u64 start = (u64)blockIdx.x * width;
  // Each thread reads below only what it wrote here.
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) residual[start + i] += delta[start + i];
  norm_row(residual + start, out + start, width, kind, weight, bias, eps);
}

// RMSNorm in place of blockIdx.y-th span of the row: queries or keys before their rotation.
extern "C" __global__ void __launch_bounds__(256) norm_span(float* x, u32 row_width, u32 first, u32 span,
    const float* __restrict__ weight, float eps) {
  float* row = x + (u64)blockIdx.x * row_width + first + (u64)blockIdx.y * span;
  norm_row(row, row, span, NORM_RMS, weight, nullptr, eps);
}

extern "C" __global__ void __launch_bounds__(256) add(float* residual, const float* __restrict__ delta, u64 n) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) residual[i] += delta[i];
}

// As in kernels/src/cuda/ops.rs.
constexpr u32 FUNCTION_SILU = 0;
constexpr u32 FUNCTION_GELU = 1;
constexpr u32 FUNCTION_GELU_TANH = 2;
constexpr u32 FUNCTION_SCALE = 3;
constexpr u32 FUNCTION_SOFT_CAP = 4;

__device__ __forceinline__ float applied(float x, u32 function, float argument) {
  switch (function) {
    case FUNCTION_SILU: return x / (1.f + expf(-x));
    case FUNCTION_GELU: return 0.5f * x * (1.f + erff(x * 0.70710678f));
    case FUNCTION_GELU_TANH: return 0.5f * x * (1.f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    case FUNCTION_SCALE: return x * argument;
    case FUNCTION_SOFT_CAP:
    default: return argument * tanhf(x / argument);
  }
}

extern "C" __global__ void __launch_bounds__(256) elementwise(float* x, u64 n, u32 function, float argument) {
  u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] = applied(x[i], function, argument);
}

// out[r][i] = function(x[r][i]) * x[r][width + i].
extern "C" __global__ void __launch_bounds__(256) gated(const float* __restrict__ x, float* __restrict__ out,
    u32 width, u32 function) {
  u32 i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  const float* row = x + (u64)blockIdx.x * 2 * width;
  out[(u64)blockIdx.x * width + i] = applied(row[i], function, 0.f) * row[width + i];
}

// out[i] = x[rows[i]].
extern "C" __global__ void __launch_bounds__(256) gather(const float* __restrict__ x,
    const u32* __restrict__ rows, float* __restrict__ out, u32 width) {
  const float* row = x + (u64)rows[blockIdx.x] * width;
  for (u32 i = threadIdx.x; i < width; i += blockDim.x) out[(u64)blockIdx.x * width + i] = row[i];
}
