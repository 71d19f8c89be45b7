// CUDA's runtime, or HIP's by the names of CUDA's, and what the ops ask of the lanes of a warp. ggml-cuda's vendors/hip.h would bring
// in libraries of matrix products.
#pragma once

#include <stdint.h>

#ifdef GGML_USE_HIP

#include <hip/hip_runtime.h>
#include <hip/hip_fp16.h>

#define cudaDevAttrMultiProcessorCount hipDeviceAttributeMultiprocessorCount
#define cudaDeviceGetAttribute hipDeviceGetAttribute
#define cudaGetDevice hipGetDevice
#define cudaGetLastError hipGetLastError
#define cudaHostRegister hipHostRegister
#define cudaHostRegisterPortable hipHostRegisterPortable
#define cudaHostUnregister hipHostUnregister
#define cudaOccupancyMaxActiveBlocksPerMultiprocessor hipOccupancyMaxActiveBlocksPerMultiprocessor
#define cudaStream_t hipStream_t
#define cudaSuccess hipSuccess

#else

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#endif

#ifdef HIP_DYNAMIC_SHARED
#define SNAPKV_DYNAMIC_SHARED(type, name) HIP_DYNAMIC_SHARED(type, name)
#else // CUDA, and HIP once it has dropped this
#define SNAPKV_DYNAMIC_SHARED(type, name) extern __shared__ type name[]
#endif

template <typename... P, typename... A>
static void snapkv_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream, A... args) {
#ifdef GGML_USE_HIP
    hipLaunchKernelGGL(kernel, grid, block, shared_bytes, stream, P(args)...);
#else
    kernel<<<grid, block, shared_bytes, stream>>>(P(args)...);
#endif
}

//
// What the ops call a warp are 32 lanes: a warp of NVIDIA's GPUs, or half of a wave of 64 lanes on AMD's. Halves of a wave may be in
// different places, and know nothing of each other.
//

// x of lane ^ mask
template <typename T> static __device__ __forceinline__ T snapkv_shfl_xor(T x, int mask) {
#ifdef GGML_USE_HIP
    return __shfl_xor(x, mask, 32);
#else
    return __shfl_xor_sync(0xffffffff, x, mask);
#endif
}

// x of lane - delta; of the lane itself where there is none
template <typename T> static __device__ __forceinline__ T snapkv_shfl_up(T x, unsigned delta) {
#ifdef GGML_USE_HIP
    return __shfl_up(x, delta, 32);
#else
    return __shfl_up_sync(0xffffffff, x, delta);
#endif
}

// a bit for each lane
static __device__ __forceinline__ uint32_t snapkv_ballot(bool x) {
#ifdef GGML_USE_HIP
    return (uint32_t) (__ballot(x) >> (__lane_id() & 32)); // of the wave
#else
    return __ballot_sync(0xffffffff, x);
#endif
}
