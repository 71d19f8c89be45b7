// The fused ops of csrc/ops/snapkv-op.h on ggml's Metal backend. Untested on hardware: csrc/tests/test-snapkv-metal.cpp runs the
// kernels and this host code as C++ on the CPU.
#pragma once

#include "ggml-metal/ggml-metal-device.h"

#ifdef __cplusplus
extern "C" {
#endif

// ggml-metal-device.m, ggml_metal_device_supports_op(): whether the device runs this GGML_OP_CUSTOM. false for what is not
// ours or not to be computed here: ggml then looks for another backend. Compiles the kernels when first asked about one of ours
bool snapkv_metal_supports_op(ggml_metal_device_t dev, const struct ggml_tensor * op);

// ggml-metal-ops.cpp, ggml_metal_op_encode_impl(): appends the op's dispatches. The caller has asked supports_op, has put a
// barrier behind whatever the op depends on, and adds the op's memory ranges afterwards
void snapkv_metal_encode(ggml_metal_device_t dev, ggml_metal_encoder_t enc, const struct ggml_tensor * op);

#ifdef __cplusplus
}
#endif
