// SnapKV's fused ops (csrc/ops/snapkv-op.h) on CUDA devices, and compiled otherwise, with HIP, on AMD's. Compiled into ggml-cuda or
// ggml-hip, which calls the first two functions for nodes of kind GGML_OP_CUSTOM.
#pragma once

struct ggml_tensor;

#if defined(GGML_USE_MUSA) // built from the same ggml-cuda.cu, and not from our sources

static inline bool snapkv_cuda_supports_op(int, const struct ggml_tensor *) {
    return false;
}
static inline bool snapkv_cuda_compute(void *, struct ggml_tensor *) {
    return false;
}
static inline void * snapkv_cuda_get_proc_address(const char *) {
    return nullptr;
}

#else

#ifdef __cplusplus
extern "C" {
#endif

// ggml-cuda's supports_op: true if this device can run the node
bool snapkv_cuda_supports_op(int device, const struct ggml_tensor * op);

// ggml-cuda's compute_forward: enqueues the node on the stream (a cudaStream_t) of the current device. false if the node is not
// one of SnapKV's; launch errors are left for the caller's cudaGetLastError
bool snapkv_cuda_compute(void * stream, struct ggml_tensor * op);

// ggml-cuda's get_proc_address: "snapkv_pin", bool (*)(void * data, size_t size), page-locks memory; "snapkv_unpin",
// void (*)(void * data), ends that. null for other names
void * snapkv_cuda_get_proc_address(const char * name);

#ifdef __cplusplus
}
#endif

#endif
