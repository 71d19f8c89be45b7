// What snapkv.metal needs of Metal's language and library, in C++17, and a GPU of which one threadgroup runs at a time.
// This checks a kernel's logic. It says nothing of the Metal compiler, of its fast math, or of the hardware.
#pragma once

#include "../gpu-threads.h"

#include "ggml.h"

#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace metal_shim {

//
// types and functions of metal_stdlib
//

typedef unsigned int uint;
typedef unsigned short ushort;
typedef uint64_t ulong;

struct half {
    uint16_t bits;
    explicit operator float() const { return ggml_fp16_to_fp32(bits); }
};

template <typename T>
struct alignas(2 * sizeof(T)) vec2 {
    T x, y;
    explicit vec2(T v = T()) : x(v), y(v) {}
    vec2(T x, T y) : x(x), y(y) {}
    void operator+=(vec2 o) {
        x += o.x;
        y += o.y;
    }
};

typedef vec2<float> float2;
typedef vec2<uint> uint2;

struct uint3 {
    uint x, y, z;
};

struct alignas(16) uint4 {
    uint x, y, z, w;
};

struct packed_float4 {
    float v[4];
};

struct alignas(16) float4 {
    float v[4];
    explicit float4(float x) : v{ x, x, x, x } {}
    explicit float4(const packed_float4 & p) : v{ p.v[0], p.v[1], p.v[2], p.v[3] } {}
    float4(float a, float b, float c, float d) : v{ a, b, c, d } {}
    float & operator[](int i) { return v[i]; }
    float operator[](int i) const { return v[i]; }
    void operator+=(const float4 & o) {
        for (int i = 0; i < 4; ++i) {
            v[i] += o.v[i];
        }
    }
    void operator*=(float f) {
        for (float & x : v) {
            x *= f;
        }
    }
};

static inline float dot(const float4 & a, const float4 & b) {
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
}

template <typename T, typename U>
static inline T as_type(U x) {
    static_assert(sizeof(T) == sizeof(U), "as_type keeps the size");
    T res;
    memcpy(&res, &x, sizeof(res));
    return res;
}

// one type for all arguments: Metal calls a mixture ambiguous
template <typename T> static inline T min(T a, T b) {
    return b < a ? b : a;
}
template <typename T> static inline T max(T a, T b) {
    return a < b ? b : a;
}
template <typename T> static inline T clamp(T x, T lo, T hi) {
    return min(max(x, lo), hi);
}
static inline float fabs(float x) {
    return std::fabs(x);
}

namespace precise {
static inline float exp(float x) {
    return std::exp(x);
}
static inline float tanh(float x) {
    return std::tanh(x);
}
} // namespace precise

using std::atomic_fetch_add_explicit;
using std::atomic_load_explicit;
using std::atomic_store_explicit;
using std::memory_order_relaxed;
typedef std::atomic<uint> atomic_uint;
static_assert(sizeof(atomic_uint) == sizeof(uint), "");

enum class mem_flags { mem_threadgroup };

//
// threadgroups
//

using gpu_threads::group;
using gpu_threads::make_group;

static inline void threadgroup_barrier(mem_flags) {
    gpu_threads::current_group->wait_for_all();
}

// what a dispatch binds
struct bindings {
    const void * args = nullptr;
    char * buffers[8] = {};
    char * shmem = nullptr;
};

typedef void (*kernel_t)(const bindings & bound, uint3 tgpig, uint tiitg, uint3 ntg);

// Threadgroup memory is exactly as large as asked for, so that an address sanitizer sees the end of it, and starts as NaN
static inline void dispatch(group & threads, kernel_t kernel, bindings bound, size_t shmem_bytes, uint3 grid, uint n_threads) {
    for (uint z = 0; z < grid.z; ++z) {
        for (uint y = 0; y < grid.y; ++y) {
            for (uint x = 0; x < grid.x; ++x) {
                std::unique_ptr<char[]> shmem(new char[shmem_bytes]);
                memset(shmem.get(), 0xff, shmem_bytes);
                bound.shmem = shmem.get();
                threads.run((int) n_threads, [&](int i) { kernel(bound, { x, y, z }, (uint) i, { n_threads, 1, 1 }); });
            }
        }
    }
}

} // namespace metal_shim
