#include "vault/index.h"

void llama_snapkv_index::reserve(uint32_t n, const std::vector<int64_t> & given) {
    widths = given;
    rows.resize(widths.size());
    for (size_t ic = 0; ic < rows.size(); ++ic) {
        rows[ic].resize(2 * (size_t) n_stretches(n) * widths[ic]);
    }
}

size_t llama_snapkv_index::bytes_of(uint32_t n, const std::vector<int64_t> & widths) {
    size_t size = 0;
    for (const int64_t width : widths) {
        size += 2 * (size_t) n_stretches(n) * width * sizeof(ggml_fp16_t);
    }
    return size;
}
