// Which logits the kernels of STATS and VOTES are made for.
#pragma once

#include "snapkv-fma.cuh"
#ifndef GGML_USE_HIP
#include "snapkv-mma.cuh"
#endif

template <typename L> struct logits_tag {
    using type = L;
};

#ifndef GGML_USE_HIP
template <int D, typename F> static bool with_mma_logits(int64_t w, F && launch) {
    if (w > mma_max_rows(D)) {
        return false;
    }
    if constexpr (D <= 128) { // 32 rows of more dims do not fit the registers
        if ((w + 15) / 16 % 2 == 0) {
            launch(logits_tag<mma_logits<D, 2>>());
            return true;
        }
    }
    launch(logits_tag<mma_logits<D, 1>>());
    return true;
}

// the sizes that models have
template <typename F> static bool with_mma_logits(int64_t head_dim, int64_t w, F && launch) {
    if (!snapkv_cuda_has_mma()) {
        return false;
    }
    switch (head_dim) {
#define X(D) case D: return with_mma_logits<D>(w, launch);
        X(32) X(64) X(80) X(96) X(112) X(128) X(160) X(192) X(256) X(512) X(576)
#undef X
        default: return false;
    }
}
#endif

// launch(logits_tag<L>())
template <typename F> static void with_logits(int64_t head_dim, int64_t w, F && launch) {
#ifndef GGML_USE_HIP
    if (with_mma_logits(head_dim, w, launch)) {
        return;
    }
#endif
    (void) head_dim;
    if (w > 16) {
        launch(logits_tag<fma_logits<2>>());
    } else {
        launch(logits_tag<fma_logits<1>>());
    }
}
