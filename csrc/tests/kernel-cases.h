// Cases of the fused ops for kernels that are compiled as C++, held against plain double loops. A test program has the device.
#pragma once

#include "check.h"

#include "ggml-backend.h"
#include "ggml-cpp.h"

#include "snapkv.h"
#include "ops/snapkv-op.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

static bool device_supports(const ggml_tensor * node);
static void device_compute(ggml_tensor * node);
static std::string device_setting(); // for messages

// of K and V, that the kernels know
static const ggml_type KV_TYPES[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };

//
// tensors in one buffer, and an op on them
//

struct tensors {
    ggml_context_ptr ctx;
    ggml_backend_buffer_ptr buffer;

    tensors() : ctx(ggml_init({ 32 * ggml_tensor_overhead(), nullptr, true })) {}

    void alloc() {
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(ctx.get(), ggml_backend_cpu_buffer_type()));
        ggml_backend_buffer_clear(buffer.get(), 0xff); // NaN, so that what is not written shows
    }

    // runs a node; nothing but its result may change
    void run(ggml_tensor * node) {
        char * base = (char *) ggml_backend_buffer_get_base(buffer.get());
        const std::vector<char> before(base, base + ggml_backend_buffer_get_size(buffer.get()));

        CHECK(device_supports(node));
        device_compute(node);

        const size_t lo = (char *) node->data - base;
        const size_t hi = lo + ggml_nbytes(node);
        CHECK(memcmp(before.data(), base, lo) == 0 && memcmp(before.data() + hi, base + hi, before.size() - hi) == 0);
    }
};

static std::mt19937 rng(42);

static float gauss() {
    static std::normal_distribution<float> dist;
    return dist(rng);
}

static int pick(int lo, int hi) {
    return std::uniform_int_distribution<int>(lo, hi)(rng);
}

static void fill(ggml_tensor * t, float scale) {
    std::vector<float> x(ggml_nelements(t));
    for (float & v : x) {
        v = scale * gauss();
    }
    switch (t->type) {
        case GGML_TYPE_F32: memcpy(t->data, x.data(), ggml_nbytes(t)); break;
        case GGML_TYPE_F16: ggml_fp32_to_fp16_row(x.data(), (ggml_fp16_t *) t->data, x.size()); break;
        case GGML_TYPE_BF16: ggml_fp32_to_bf16_row(x.data(), (ggml_bf16_t *) t->data, x.size()); break;
        default: ggml_quantize_chunk(t->type, x.data(), t->data, 0, ggml_nrows(t), t->ne[0], nullptr); break;
    }
}

static std::vector<float> row_of(const ggml_tensor * t, int64_t i1, int64_t i2) {
    std::vector<float> res(t->ne[0]);
    const char * src = (const char *) t->data + i1 * t->nb[1] + i2 * t->nb[2];
    if (t->type == GGML_TYPE_F32) {
        memcpy(res.data(), src, res.size() * sizeof(float));
    } else {
        ggml_get_type_traits(t->type)->to_float(src, res.data(), res.size());
    }
    return res;
}
