// The ops' entry points.
#pragma once

#include "ops/snapkv-op.h"

#include <cuda_runtime.h>

#include <stdint.h>

void snapkv_cuda_stats(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_votes(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_select(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_evict(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);

// whether STATS and VOTES have kernels for the head size
bool snapkv_cuda_has_head_dim(int64_t head_dim);
