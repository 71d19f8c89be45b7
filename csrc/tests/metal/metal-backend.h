// A stand-in for the functions of upstream's Metal backend that snapkv-metal.cpp calls: a dispatch runs its kernel at once.
#pragma once

#include "../kernel-cases.h"
#include "metal-kernels.h"

#include "ggml-metal/ggml-metal-device.h"

#include <iterator>

extern const char snapkv_metal_source[];
const char snapkv_metal_source[] = "the stand-in has its kernels already";

struct ggml_metal_pipeline {
    metal_shim::kernel_t run;
};

struct ggml_metal_encoder {
    metal_shim::bindings bound;
    std::vector<char> args; // upstream copies, too
    metal_shim::kernel_t run;
    size_t shmem_bytes;
    bool barrier = true; // since the last dispatch
};

static std::unique_ptr<metal_shim::group> device_threads;
static ggml_metal_device_props device_props;
static int device_max_threads = 256; // of a threadgroup
static bool device_compiles = true;
static int n_libraries = 0;

// a device is only a handle: one for each test that wants a library of its own
static ggml_metal_device_t device(int i) {
    static char handles[16];
    return (ggml_metal_device_t) &handles[i];
}

extern "C" {

const ggml_metal_device_props * ggml_metal_device_get_props(ggml_metal_device_t) {
    return &device_props;
}

ggml_metal_library_t ggml_metal_library_init_from_source(ggml_metal_device_t, const char * source, bool) {
    CHECK(source == snapkv_metal_source);
    n_libraries++;
    return device_compiles ? (ggml_metal_library_t) &n_libraries : nullptr;
}

void ggml_metal_library_free(ggml_metal_library_t) {}

ggml_metal_pipeline_with_params ggml_metal_library_compile_pipeline(ggml_metal_library_t, const char * base, const char * name, ggml_metal_cv_t cv) {
    static ggml_metal_pipeline pipelines[std::size(metal_shim::kernels)];
    CHECK(!cv && !strcmp(base, name));
    ggml_metal_pipeline_with_params res = {};
    for (size_t i = 0; i < std::size(metal_shim::kernels); ++i) {
        if (!strcmp(metal_shim::kernels[i].name, name)) {
            pipelines[i].run = metal_shim::kernels[i].run;
            res.pipeline = &pipelines[i];
        }
    }
    return res;
}

int ggml_metal_pipeline_max_theads_per_threadgroup(ggml_metal_pipeline_with_params) {
    return device_max_threads;
}

void ggml_metal_encoder_set_pipeline(ggml_metal_encoder_t enc, ggml_metal_pipeline_with_params pipeline) {
    enc->bound = {};
    enc->shmem_bytes = 0;
    enc->run = pipeline.pipeline->run;
}

void ggml_metal_encoder_set_bytes(ggml_metal_encoder_t enc, void * data, size_t size, int idx) {
    CHECK(idx == 0);
    enc->args.assign((char *) data, (char *) data + size);
    enc->bound.args = enc->args.data();
}

void ggml_metal_encoder_set_buffer(ggml_metal_encoder_t enc, ggml_metal_buffer_id buffer, int idx) {
    enc->bound.buffers[idx] = (char *) buffer.metal + buffer.offs;
}

void ggml_metal_encoder_set_threadgroup_memory_size(ggml_metal_encoder_t enc, size_t size, int idx) {
    CHECK(idx == 0 && size % 16 == 0 && size <= device_props.max_theadgroup_memory_size);
    enc->shmem_bytes = size;
}

void ggml_metal_encoder_dispatch_threadgroups(ggml_metal_encoder_t enc, int tg0, int tg1, int tg2, int tptg0, int tptg1, int tptg2) {
    CHECK(enc->barrier); // dispatches of an op depend on each other
    CHECK(tg0 > 0 && tg1 > 0 && tg2 > 0 && tptg0 > 0 && tptg0 <= device_max_threads && tptg1 == 1 && tptg2 == 1);
    enc->barrier = false;
    metal_shim::dispatch(*device_threads, enc->run, enc->bound, enc->shmem_bytes, { (unsigned) tg0, (unsigned) tg1, (unsigned) tg2 }, tptg0);
}

void ggml_metal_encoder_memory_barrier(ggml_metal_encoder_t enc) {
    enc->barrier = true;
}

ggml_metal_buffer_id ggml_metal_buffer_get_id(ggml_metal_buffer_t buf, const ggml_tensor * t) {
    return { (void *) buf, (size_t) ((char *) t->data - (char *) buf) }; // the CPU buffer's context is its memory
}
}
