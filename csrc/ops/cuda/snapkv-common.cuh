// The ops' entry points.
#pragma once

#include "ops/snapkv-op.h"

#include <cuda_runtime.h>

#include <stdint.h>

void snapkv_cuda_stats(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_votes(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_select(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_evict(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);

// rows of the window that STATS and VOTES take with this head size; 0: they have no kernels for it
int64_t snapkv_cuda_max_window(int64_t head_dim);
