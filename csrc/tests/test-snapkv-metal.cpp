// The Metal side of the fused ops without Metal: snapkv.metal is compiled as C++ (tests/metal/), snapkv-metal.cpp runs as it
// is, on a stand-in for upstream's Metal functions that runs what it encodes.
// Untested by this: the Metal compiler, its fast math, the hardware.
//
//     test-snapkv-metal [--threads]    threads of the operating system instead of fibers, fewer cases (for -fsanitize=thread)

#include "kernel-scoring.h"
#include "kernel-selection.h"

// the unit under test
#include "ops/metal/snapkv-metal.cpp"

#include "metal/metal-backend.h"

static_assert((int) SNAPKV_METAL_POOLING_AVG == LLAMA_SNAPKV_POOLING_AVG && (int) SNAPKV_METAL_POOLING_MAX == LLAMA_SNAPKV_POOLING_MAX &&
                (int) SNAPKV_METAL_POOLING_NOSINK == LLAMA_SNAPKV_POOLING_NOSINK && AGGREGATION_MAX == LLAMA_SNAPKV_AGGREGATION_MAX,
        "csrc/metal cannot include snapkv.h");

static bool device_supports(const ggml_tensor * node) {
    return snapkv_metal_supports_op(device(0), node);
}

static void device_compute(ggml_tensor * node) {
    ggml_metal_encoder enc;
    snapkv_metal_encode(device(0), &enc, node);
}

static std::string device_setting() {
    return "threads=" + std::to_string(device_max_threads);
}

//
// what the device is not asked to run
//

static void test_supports() {
    const shape s = { GGML_TYPE_F16, 64, 300, 16, 2, 4, 0.0f, false, 7, LLAMA_SNAPKV_POOLING_AVG, LLAMA_SNAPKV_AGGREGATION_SUM };
    {
        scoring in(s);
        const size_t memory = device_props.max_theadgroup_memory_size;
        device_props.max_theadgroup_memory_size = 8 * 1024;
        CHECK(!device_supports(in.stats) && !device_supports(in.votes));
        device_props.max_theadgroup_memory_size = memory;
    }
    {
        // kernels that do not compile: another backend's turn, and no second attempt
        scoring in(s);
        const int n = n_libraries;
        device_compiles = false;
        CHECK(!snapkv_metal_supports_op(device(1), in.stats) && !snapkv_metal_supports_op(device(1), in.votes));
        device_compiles = true;
        CHECK(!snapkv_metal_supports_op(device(1), in.stats));
        CHECK(n_libraries == n + 1);
    }
}

int main(int argc, char ** argv) {
    const bool threads = argc > 1 && strcmp(argv[1], "--threads") == 0;
    device_threads = metal_shim::make_group(threads);
    device_props.max_theadgroup_memory_size = 32 * 1024;

    const int AVG = LLAMA_SNAPKV_POOLING_AVG, MAX = LLAMA_SNAPKV_POOLING_MAX;
    const int SUM = LLAMA_SNAPKV_AGGREGATION_SUM, TOP = LLAMA_SNAPKV_AGGREGATION_MAX;

    if (threads) {
        device_max_threads = 64;
        test_scoring({ GGML_TYPE_F16, 64, 70, 5, 2, 3, 0.0f, true, 5, AVG, SUM });
        test_scoring({ GGML_TYPE_Q8_0, 256, 40, 6, 1, 2, 10.0f, false, 3, MAX, TOP });
        test_select(12);
        test_evict(GGML_TYPE_F16, 64, 2, 20, 9, 4, 16);
        return report();
    }

    test_refused_scoring();
    test_supports();
    test_scoring_faults();

    // sizes around the ends of tiles, ranges and blocks of columns
    for (const int n : { 32, 33, 500, 1023, 1024, 1025, 2049 }) {
        device_max_threads = n % 2 ? 256 : 64;
        test_scoring({ GGML_TYPE_F16, 64, n, 32, 1, 2, 0.0f, false, 7, AVG, SUM });
    }
    // the limits, and one key only
    device_max_threads = 256;
    test_scoring({ GGML_TYPE_F16, 64, 1, 1, 1, 1, 0.0f, false, 1, AVG, SUM });
    test_scoring({ GGML_TYPE_F16, 256, 280, 256, 1, 16, 0.0f, true, 127, AVG, TOP });
    test_scoring({ GGML_TYPE_Q4_0, 128, 256, 256, 2, 1, 30.0f, false, 127, MAX, SUM });
    test_scoring({ GGML_TYPE_F32, 16, 257, 256, 1, 3, 0.0f, false, 3, MAX, TOP });
    test_scoring({ GGML_TYPE_F16, 512, 280, 256, 1, 8, 0.0f, false, 31, AVG, SUM });
    test_scoring({ GGML_TYPE_F16, 64, 100, 8, 1, 64, 0.0f, false, 7, MAX, TOP });

    for (int c = 0; c < 60; ++c) {
        const int dims[] = { 64, 96, 128, 256, 512, 576, 80, 112 };
        const int maxima[] = { 32, 64, 96, 256, 300 };
        const shape s = shape_by_chance(c, dims, 20, 400);
        device_max_threads = maxima[pick(0, 4)];
        test_scoring(s);
    }

    for (const int n : { 32, 64, 256, 1024 }) {
        device_max_threads = n;
        test_select(40);
    }

    device_max_threads = 256;
    test_evictions();
    return report();
}
