// See hip_runtime.h.
#pragma once

#include "ggml.h"

struct __half {
    uint16_t bits;
};

static inline __half __ushort_as_half(uint16_t bits) {
    return { bits };
}
static inline float __half2float(__half x) {
    return ggml_fp16_to_fp32(x.bits);
}
