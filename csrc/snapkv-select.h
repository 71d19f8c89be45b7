// Which prompt positions a KV head keeps: top-k of its pooled scores, on the host.
#pragma once

#include <cstdint>
#include <vector>

// the k positions of scores [n] with the highest score, ascending. equal scores: the lower position. NaN ranks last.
// positions below n_sinks are always among them. k is at most n
std::vector<int32_t> llama_snapkv_select(const std::vector<float> & scores, uint32_t k, uint32_t n_sinks);

// share of the attention mass [n] that lies on the kept positions and on the last w, in [0, 1]
double llama_snapkv_coverage_of(const std::vector<float> & mass, const std::vector<int32_t> & kept, uint32_t w);
