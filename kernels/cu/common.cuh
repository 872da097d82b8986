// What every kernel uses: number formats, reductions over a block. No header of the toolkit is included.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

constexpr u32 FULL_WARP = 0xffffffffu;
constexpr int MAX_WARPS = 32;
#define MINUS_INFINITY __uint_as_float(0xff800000u)

// Formats of weights, as in kernels/src/cuda/linear.rs.
constexpr u32 FORMAT_F32 = 0;
constexpr u32 FORMAT_F16 = 1;
constexpr u32 FORMAT_BF16 = 2;

__device__ __forceinline__ float from_bf16(u16 bits) { return __uint_as_float((u32)bits << 16); }

// Nearest, ties to even.
__device__ __forceinline__ u16 to_bf16(float value) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(0.f), "f"(value));
  return (u16)pair;
}

__device__ __forceinline__ float from_f16(u16 bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

__device__ __forceinline__ float weight_at(const void* weights, u32 format, u64 idx) {
  if (format == FORMAT_F32) return ((const float*)weights)[idx];
  u16 bits = ((const u16*)weights)[idx];
  return format == FORMAT_F16 ? from_f16(bits) : from_bf16(bits);
}

// Sum over the block, the same bits in every thread: lanes by a butterfly, then warps in their order.
// `scratch` has a place for every warp. blockDim.x is a multiple of 32.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* scratch) {
#pragma unroll
  for (int by = 16; by > 0; by >>= 1) value += __shfl_xor_sync(FULL_WARP, value, by);
  __syncthreads();  // scratch may still be read from before
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  T sum = 0;
  for (u32 warp = 0; warp < blockDim.x / 32; warp++) sum += scratch[warp];
  return sum;
}

// Maximum over the block, the same in every thread.
__device__ __forceinline__ u64 block_max(u64 value, u64* scratch) {
#pragma unroll
  for (int by = 16; by > 0; by >>= 1) {
    u64 other = __shfl_xor_sync(FULL_WARP, value, by);
    value = value < other ? other : value;
  }
  __syncthreads();  // scratch may still be read from before
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  u64 most = 0;
  for (u32 warp = 0; warp < blockDim.x / 32; warp++) most = scratch[warp] < most ? most : scratch[warp];
  return most;
}
