// Arithmetic of CPU kernels that the compiler vectorises by itself. A kernel's body is inlined into one function for each instruction set.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__GNUC__) || defined(__clang__)
#define BODY static inline __attribute__((always_inline))
#define PREFETCH(address) __builtin_prefetch(address)
#else
#define BODY static inline
#define PREFETCH(address) (void) (address)
#endif

#if (defined(__GNUC__) || defined(__clang__)) && defined(__x86_64__)
#define SNAPKV_AVX2
#define TARGET_AVX2 __attribute__((target("avx2,fma")))

[[maybe_unused]] static bool has_avx2() {
    static const bool res = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    return res;
}
#endif

BODY float from_bits(uint32_t bits) {
    float res;
    memcpy(&res, &bits, sizeof(res));
    return res;
}

BODY uint32_t to_bits(float x) {
    uint32_t res;
    memcpy(&res, &x, sizeof(res));
    return res;
}

// with masks instead of branches, so that it vectorises; ggml_fp16_to_fp32_row() does not
BODY float from_f16(uint16_t h) {
    const uint32_t rest = h & 0x7fff;
    const uint32_t is_tiny = 0u - (uint32_t) (rest < 0x0400);
    const uint32_t is_special = 0u - (uint32_t) (rest >= 0x7c00); // infinity or NaN
    const uint32_t tiny = to_bits((float) (int32_t) rest * 0x1p-24f);
    const uint32_t normal = ((rest << 13) + (112u << 23)) | (is_special & 0x7f800000);
    return from_bits((tiny & is_tiny) | (normal & ~is_tiny) | (uint32_t) (h & 0x8000) << 16);
}

// e^x for x <= 0 to 1e-7 relative (Cephes' polynomial), at least e^-87, which is as good as 0 here. NaN stays NaN.
// selects are on integers: those on floats might trap, so that GCC would not vectorise them
BODY float exp_f32(float x) {
    const uint32_t magnitude = to_bits(x) & 0x7fffffff;
    const uint32_t bounded = magnitude < 0x42ae0000 ? magnitude : 0x42ae0000;
    const float t = -from_bits(magnitude > 0x7f800000 ? magnitude : bounded);
    const float shifted = t * 1.44269504f + 12582912.0f; // 1.5*2^23: the low bits are now the rounded integer
    const float i = shifted - 12582912.0f;
    const float r = (t - i * 0.693359375f) + i * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * from_bits((to_bits(shifted) << 23) + 0x3f800000);
}

BODY float tanh_f32(float x) {
    const uint32_t sign = to_bits(x) & 0x80000000;
    const float e = exp_f32(x + x); // e^-|2x|
    return from_bits(to_bits((1.0f - e) / (1.0f + e)) | sign);
}
