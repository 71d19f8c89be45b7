// A stand-in for HIP's runtime: what csrc/ops/cuda/ needs of it, in C++17, and a GPU of which one block runs at a time.
// This checks the logic of kernels. It says nothing of HIP's compiler or of the hardware.
#pragma once

#include "../../gpu-threads.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static // one block at a time
#define __forceinline__ inline
#define __launch_bounds__(...)
#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunknown-pragmas" // unroll
#endif

//
// types
//

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

static inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) {
    return { x, y, z, w };
}
static inline float2 make_float2(float x, float y) {
    return { x, y };
}
static inline float4 make_float4(float x, float y, float z, float w) {
    return { x, y, z, w };
}

//
// the device
//

namespace hip_stand_in {

struct device {
    std::unique_ptr<gpu_threads::group> threads;
    unsigned wave = 32; // lanes; those of a wave of 64 are two groups of 32, each of which may be anywhere
    int max_threads = 1024;             // of a block
    size_t max_shared_bytes = 48 * 1024; // of a block; static memory is not counted
    int n_processors = 3;

    dim3 grid, block, index; // of the running block
    char * shared = nullptr; // dynamic
    std::string problem;     // with a launch
    // what lanes exchange: two turns, so that a lane may write for the next one while another still reads
    std::vector<uint64_t> lanes[2];
};

inline device gpu;

static inline dim3 thread() {
    const unsigned i = (unsigned) gpu.threads->thread();
    return dim3(i % gpu.block.x, i / gpu.block.x % gpu.block.y, i / gpu.block.x / gpu.block.y);
}

// what a lane finds where another is that it has not waited for
static inline uint64_t garbage() {
    static thread_local std::minstd_rand rng{ 1 };
    return (uint64_t) rng() << 32 ^ rng();
}

// the lanes' values: x of this lane goes in, and what the other one has comes out
template <typename T> static T exchange(T x, unsigned from) {
    static_assert(sizeof(T) <= sizeof(uint64_t), "a value of 8 bytes");
    const unsigned i = (unsigned) gpu.threads->thread();
    std::vector<uint64_t> & lanes = gpu.lanes[gpu.threads->n_waits_of_lanes() % 2];
    uint64_t bits = 0;
    memcpy(&bits, &x, sizeof(x));
    lanes[i] = bits;
    gpu.threads->wait_for_lanes();
    const bool same_group = from / gpu_threads::LANES == i / gpu_threads::LANES;
    bits = same_group ? lanes[from] : garbage();
    memcpy(&x, &bits, sizeof(x));
    return x;
}

} // namespace hip_stand_in

#define threadIdx (hip_stand_in::thread())
#define blockIdx (hip_stand_in::gpu.index)
#define blockDim (hip_stand_in::gpu.block)
#define gridDim (hip_stand_in::gpu.grid)
#define HIP_DYNAMIC_SHARED(type, name) type * name = reinterpret_cast<type *>(hip_stand_in::gpu.shared)

static inline void __syncthreads() {
    hip_stand_in::gpu.threads->wait_for_all();
}

//
// lanes, as HIP's documentation has them: without a width they are a wave's
//

static inline unsigned __lane_id() {
    return (unsigned) hip_stand_in::gpu.threads->thread() % hip_stand_in::gpu.wave;
}

template <typename T> static T __shfl_xor(T x, int mask, int width = (int) hip_stand_in::gpu.wave) {
    const unsigned i = (unsigned) hip_stand_in::gpu.threads->thread();
    const unsigned from = i ^ (unsigned) mask;
    return hip_stand_in::exchange(x, from / width == i / width ? from : i);
}

template <typename T> static T __shfl_up(T x, unsigned delta, int width = (int) hip_stand_in::gpu.wave) {
    const unsigned i = (unsigned) hip_stand_in::gpu.threads->thread();
    return hip_stand_in::exchange(x, i % width >= delta ? i - delta : i);
}

static inline unsigned long long __ballot(int x) {
    using namespace hip_stand_in;
    const unsigned first = (unsigned) gpu.threads->thread() / gpu_threads::LANES * gpu_threads::LANES;
    std::vector<uint64_t> & lanes = gpu.lanes[gpu.threads->n_waits_of_lanes() % 2];
    exchange(x != 0, first);
    uint64_t bits = 0;
    for (unsigned i = 0; i < gpu_threads::LANES; ++i) {
        bits |= (lanes[first + i] & 1) << i;
    }
    if (gpu.wave == 32) {
        return bits;
    }
    return first % 64 ? bits << 32 | (uint32_t) garbage() : garbage() << 32 | bits;
}

//
// functions
//

template <typename T, typename U> static T bits_as(U x) {
    static_assert(sizeof(T) == sizeof(U), "the same size");
    T y;
    memcpy(&y, &x, sizeof(y));
    return y;
}
static inline uint32_t __float_as_uint(float x) {
    return bits_as<uint32_t>(x);
}
static inline int __float_as_int(float x) {
    return bits_as<int>(x);
}
static inline float __uint_as_float(uint32_t x) {
    return bits_as<float>(x);
}
static inline float __fdividef(float x, float y) {
    return x / y;
}
static inline int __popc(uint32_t x) {
    int n = 0;
    for (; x; x &= x - 1) {
        n++;
    }
    return n;
}
static inline uint32_t atomicAdd(uint32_t * p, uint32_t x) {
    return __atomic_fetch_add(p, x, __ATOMIC_RELAXED);
}
using std::min;

//
// host
//

typedef void * hipStream_t;
typedef enum { hipSuccess = 0,
    hipErrorInvalidValue = 1 } hipError_t;
enum hipDeviceAttribute_t { hipDeviceAttributeMultiprocessorCount };
enum { hipHostRegisterPortable = 1 };

static inline hipError_t hipGetDevice(int * device) {
    *device = 0;
    return hipSuccess;
}
static inline hipError_t hipDeviceGetAttribute(int * value, hipDeviceAttribute_t, int) {
    *value = hip_stand_in::gpu.n_processors;
    return hipSuccess;
}
static inline hipError_t hipGetLastError() {
    return hipSuccess;
}
static inline hipError_t hipHostRegister(void * data, size_t size, unsigned) {
    return data && size ? hipSuccess : hipErrorInvalidValue;
}
static inline hipError_t hipHostUnregister(void * data) {
    return data ? hipSuccess : hipErrorInvalidValue;
}
template <typename K> static hipError_t hipOccupancyMaxActiveBlocksPerMultiprocessor(int * n_blocks, K, int threads, size_t) {
    *n_blocks = 1024 / threads;
    return hipSuccess;
}

// The blocks run at once, in turn. Shared memory is exactly as large as asked for, so that an address sanitizer sees the end of it, and
// starts as NaN
template <typename... P, typename... A> static void hipLaunchKernelGGL(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared_bytes, hipStream_t, A... args) {
    using namespace hip_stand_in;
    const unsigned n = block.x * block.y * block.z;
    if (n == 0 || n > (unsigned) gpu.max_threads || shared_bytes > gpu.max_shared_bytes || grid.x == 0 || grid.y == 0 || grid.y > 65535 || grid.z == 0) {
        char buf[120];
        snprintf(buf, sizeof(buf), "a launch of %ux%u blocks of %u threads with %zu bytes", grid.x, grid.y, n, shared_bytes);
        gpu.problem = buf;
        return;
    }
    gpu.grid = grid;
    gpu.block = block;
    gpu.lanes[0].resize(n + gpu_threads::LANES);
    gpu.lanes[1].resize(n + gpu_threads::LANES);
    for (unsigned z = 0; z < grid.z; ++z) {
        for (unsigned y = 0; y < grid.y; ++y) {
            for (unsigned x = 0; x < grid.x; ++x) {
                gpu.index = dim3(x, y, z);
                std::unique_ptr<char[]> memory(new char[shared_bytes]);
                memset(memory.get(), 0xff, shared_bytes);
                gpu.shared = memory.get();
                gpu.threads->run((int) n, [&](int) { kernel(args...); });
            }
        }
    }
}
