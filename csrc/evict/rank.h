// Which prompt positions a KV head keeps: top-k of its pooled scores, on the host.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

// the k positions of scores [n] with the highest score, ascending. equal scores: the lower position. NaN ranks last.
// positions below n_sink are always among them. k is at most n
std::vector<int32_t> llama_snapkv_select(const std::vector<float> & scores, uint32_t k, uint32_t n_sink);

// the k best of scores [n], in the order of their ranks; equal scores: the lower position, NaN last. stays [n]: true for positions
// that come before all others
std::vector<int32_t> llama_snapkv_rank(const std::vector<float> & scores, uint32_t k, const std::vector<bool> & stays);

// "" or what is wrong with ids [n_kept, n_head_kv], which should be ascending and distinct for each head, and below n_prefix
std::string llama_snapkv_check_ids(const int32_t * ids, uint32_t n_kept, uint32_t n_head_kv, uint32_t n_prefix);

// share of the attention mass [n] that lies on the kept positions and on the last w, in [0, 1]
double llama_snapkv_coverage_of(const std::vector<float> & mass, const std::vector<int32_t> & kept, uint32_t w);
