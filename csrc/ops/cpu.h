// The fused ops of ops/snapkv-op.h as the CPU backend calls them. They live in libllama, since ggml's CPU backend may be a
// module, and use ggml's public interface only. The same bits come out for every number of threads.
#pragma once

struct ggml_tensor;

void snapkv_op_cpu_stats(ggml_tensor * dst, int ith, int nth, void * userdata);
void snapkv_op_cpu_votes(ggml_tensor * dst, int ith, int nth, void * userdata);
void snapkv_op_cpu_select(ggml_tensor * dst, int ith, int nth, void * userdata);
void snapkv_op_cpu_evict(ggml_tensor * dst, int ith, int nth, void * userdata);
