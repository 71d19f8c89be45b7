// The ops' entry points.
#pragma once

#include "ops/snapkv-op.h"

#include "snapkv-vendor.cuh"

void snapkv_cuda_stats(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_votes(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_select(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);
void snapkv_cuda_evict(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op);

#ifndef GGML_USE_HIP
// true if the current device has the instructions of snapkv-mma.cuh, and the build kernels with them
bool snapkv_cuda_has_mma();
#endif
