// Queries that ask a KV head, side by side: what keys in host memory get from all of them at once.
#pragma once

#include "snapkv.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

class llama_snapkv_lanes {
public:
    static constexpr int64_t WIDTH = 8; // lanes are so many at a time; those that no query fills ask nothing

    // q: [head_dim, n_queries, n_head] of the n_head query heads that read the KV head. lane h*n_queries + i is query i of head h.
    // logit = scale*(q*k), or softcap*tanh(q*k*scale/softcap)
    llama_snapkv_lanes(const float * q, int64_t head_dim, int64_t n_queries, int64_t n_head, float scale, float softcap);

    int64_t count() const { return n; }

    // of n_keys keys, stride bytes apart: [n, n_keys]. out has room for a multiple of WIDTH keys, and what is behind n_keys is nothing
    void logits(ggml_type type, const uint8_t * keys, size_t stride, int64_t n_keys, float * out) const;

    // of stretches, each a mean key and a spread (llama_snapkv_stretch), [head_dim, 2, n_stretches]: what their mean keys get, and what their
    // best ones might. as above
    void logits_of_stretches(const ggml_fp16_t * stretches, int64_t n_stretches, float * of_mean, float * of_best) const;

    // the largest logit of each lane, if it is larger than max's
    void max(const float * logits, int64_t n_keys, float * max) const;

    // logits become exp(logit - max); sum: weight times these, of each lane
    void exp(float * logits, int64_t n_keys, const float * max, double weight, double * sum) const;

    // what each key gets: shares of the sum, joined over the queries of a head, mean over the heads
    void votes(const float * exps, int64_t n_keys, const double * sum, llama_snapkv_aggregation aggregation, float * out) const;

private:
    void multiply(const float * q, ggml_type type, const uint8_t * keys, size_t stride, int64_t n_keys, float * out) const;
    void cap(float * logits, int64_t n_keys) const;

    int64_t head_dim;
    int64_t n_queries;
    int64_t n_head;
    int64_t n; // of lanes
    float softcap;
    std::vector<float> q;          // [n, head_dim], scaled
    std::vector<float> magnitudes; // the same without signs
};

// a stretch's keys, n_rows of n elements, stride bytes apart, as two: their mean, and a quarter of what their elements range over.
// q*mean + |q|*spread lies midway between what q gives the mean key and a bound of what it gives any of them, if they range about the mean as
// Quest's does (arXiv 2406.10774, section 3.3). parts of a stretch may be added one after the other
class llama_snapkv_stretch {
public:
    explicit llama_snapkv_stretch(int64_t n);

    void begin();
    void add(ggml_type type, const uint8_t * rows, size_t stride, int64_t n_rows);
    void write(int64_t first, int64_t n, ggml_fp16_t * out) const; // of n elements, a head's: [n, 2], mean and spread

private:
    int64_t n;
    int64_t count = 0; // of rows
    std::vector<float> row, sum, min, max;
};
