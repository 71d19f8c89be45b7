// snapkv.metal as C++ in the namespace metal_shim. Metal's keywords are common words: nothing but the kernels is compiled
// while they are macros.
#pragma once

#include "metal-shim.h"

#include "ops/metal/snapkv-metal-args.h"

#define kernel static
#define device
#define constant const
#define threadgroup

#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wattributes"
#endif
#if defined(__clang__)
#pragma GCC diagnostic ignored "-Wunknown-attributes"
#endif

namespace metal_shim {
#include "ops/metal/snapkv.metal"
}

#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

#undef kernel
#undef device
#undef constant
#undef threadgroup

namespace metal_shim {

static const struct {
    const char * name;
    kernel_t run;
} kernels[] = {
    { "snapkv_stats", [](const bindings & b, uint3 tgpig, uint tiitg, uint3 ntg) {
         snapkv_stats(*(const snapkv_metal_scoring_args *) b.args, b.buffers[1], b.buffers[2], (float2 *) b.buffers[3], (float *) b.shmem, tgpig, tiitg, ntg);
     } },
    { "snapkv_stats_merge", [](const bindings & b, uint3 tgpig, uint tiitg, uint3 ntg) {
         snapkv_stats_merge(*(const snapkv_metal_scoring_args *) b.args, (float *) b.buffers[1], (float2 *) b.buffers[2], tgpig, tiitg, ntg);
     } },
    { "snapkv_votes", [](const bindings & b, uint3 tgpig, uint tiitg, uint3 ntg) {
         snapkv_votes(*(const snapkv_metal_scoring_args *) b.args, b.buffers[1], b.buffers[2], (float2 *) b.buffers[3], (float *) b.buffers[4], (float *) b.shmem, tgpig, tiitg, ntg);
     } },
    { "snapkv_select", [](const bindings & b, uint3 tgpig, uint tiitg, uint3 ntg) {
         snapkv_select(*(const snapkv_metal_select_args *) b.args, (uint *) b.buffers[1], (int *) b.buffers[2], (uint *) b.shmem, tgpig, tiitg, ntg);
     } },
    { "snapkv_evict", [](const bindings & b, uint3 tgpig, uint tiitg, uint3 ntg) {
         snapkv_evict(*(const snapkv_metal_evict_args *) b.args, b.buffers[1], (int *) b.buffers[2], b.buffers[3], tgpig, tiitg, ntg);
     } },
};

} // namespace metal_shim
