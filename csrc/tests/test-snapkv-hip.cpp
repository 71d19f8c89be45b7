// The fused ops as AMD's GPUs get them, without such a GPU: csrc/ops/cuda/ is compiled as C++ on a stand-in for HIP's runtime (tests/hip/),
// with waves of 32 and of 64 lanes. The kernels without tensor cores are those that NVIDIA's older GPUs run.
// Untested by this: HIP's compiler and the hardware.
//
//     test-snapkv-hip [--threads]    threads of the operating system instead of fibers, fewer cases (for -fsanitize=thread)

#include "kernel-scoring.h"
#include "kernel-selection.h"

#include "ops/cuda/snapkv-cuda.h"

#include <hip/hip_runtime.h>

using hip_stand_in::gpu;

static bool device_supports(const ggml_tensor * node) {
    return snapkv_cuda_supports_op(0, node);
}

static void device_compute(ggml_tensor * node) {
    gpu.problem.clear();
    CHECK(snapkv_cuda_compute(nullptr, node));
    if (!gpu.problem.empty()) {
        printf("%s\n", gpu.problem.c_str());
        n_failed++;
    }
}

static std::string device_setting() {
    return "lanes of a wave=" + std::to_string(gpu.wave) + " processors=" + std::to_string(gpu.n_processors);
}

// what the stand-in does where lanes differ, so that the other tests can fail
static void test_lanes() {
    std::vector<uint32_t> got(64 * 4);
    const auto kernel = +[](uint32_t * out) {
        const uint32_t i = threadIdx.x;
        out[i * 4] = __shfl_xor(i, 5, 32);
        out[i * 4 + 1] = __shfl_up(i, 1, 32);
        out[i * 4 + 2] = __shfl_up(i, 1);
        const unsigned long long all = __ballot(i % 3 == 0);
        out[i * 4 + 3] = (uint32_t) (all >> (__lane_id() & 32));
    };
    hipLaunchKernelGGL(kernel, dim3(1), dim3(64), 0, nullptr, got.data());
    uint32_t low = 0;
    uint32_t high = 0;
    for (uint32_t i = 0; i < 32; ++i) {
        low |= (uint32_t) (i % 3 == 0) << i;
        high |= (uint32_t) ((i + 32) % 3 == 0) << i;
    }
    for (uint32_t i = 0; i < 64; ++i) {
        CHECK(got[i * 4] == (i ^ 5));
        CHECK(got[i * 4 + 1] == (i % 32 ? i - 1 : i));
        // without a width the lane below is one of the other half of a wave of 64, which may be anywhere
        CHECK((got[i * 4 + 2] == (i ? i - 1 : i)) == (i != 32));
        CHECK(got[i * 4 + 3] == (i < 32 ? low : high));
    }
    hipLaunchKernelGGL(kernel, dim3(1), dim3(64), gpu.max_shared_bytes + 1, nullptr, got.data());
    CHECK(!gpu.problem.empty());
}

static void test_pinned() {
    char data[16];
    auto * pin = (bool (*)(void *, size_t)) snapkv_cuda_get_proc_address("snapkv_pin");
    auto * unpin = (void (*)(void *)) snapkv_cuda_get_proc_address("snapkv_unpin");
    CHECK(pin && unpin && !snapkv_cuda_get_proc_address("snapkv_other"));
    CHECK(pin(data, sizeof(data)) && !pin(nullptr, sizeof(data)));
    unpin(data);
}

int main(int argc, char ** argv) {
    const bool threads = argc > 1 && strcmp(argv[1], "--threads") == 0;
    gpu.threads = gpu_threads::make_group(threads);

    const ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };
    const int AVG = LLAMA_SNAPKV_POOLING_AVG, MAX = LLAMA_SNAPKV_POOLING_MAX;
    const int SUM = LLAMA_SNAPKV_AGGREGATION_SUM, TOP = LLAMA_SNAPKV_AGGREGATION_MAX;

    if (threads) {
        gpu.wave = 64;
        test_scoring({ GGML_TYPE_F16, 64, 70, 5, 2, 3, 0.0f, true, 5, AVG, SUM });
        test_scoring({ GGML_TYPE_Q8_0, 96, 200, 40, 1, 2, 10.0f, false, 3, MAX, TOP });
        test_evict(GGML_TYPE_F16, 64, 2, 20, 9, 4, 16);
        printf("%s\n", n_failed ? "FAILED" : "passed");
        return n_failed != 0;
    }

    gpu.wave = 64;
    test_lanes();
    test_pinned();
    test_refused_scoring();
    for (const unsigned wave : { 32, 64 }) {
        gpu.wave = wave;
        test_scoring_faults();

        // sizes around the ends of tiles and ranges
        for (const int n : { 32, 63, 64, 65, 500 }) {
            gpu.n_processors = 1 + n % 3;
            test_scoring({ GGML_TYPE_F16, 64, n, 32, 1, 2, 0.0f, false, 7, AVG, SUM });
        }
        // the limits, and one key only
        test_scoring({ GGML_TYPE_F16, 64, 1, 1, 1, 1, 0.0f, false, 1, AVG, SUM });
        test_scoring({ GGML_TYPE_F16, 256, 280, 256, 1, 3, 0.0f, true, 127, AVG, TOP });
        test_scoring({ GGML_TYPE_Q4_0, 128, 256, 256, 2, 1, 30.0f, false, 127, MAX, SUM });
        test_scoring({ GGML_TYPE_F32, 16, 257, 256, 1, 3, 0.0f, false, 3, MAX, TOP });
        test_scoring({ GGML_TYPE_F16, 576, 280, 200, 1, 2, 0.0f, false, 31, AVG, SUM });
        test_scoring({ GGML_TYPE_F16, 64, 100, 8, 1, 64, 0.0f, false, 7, MAX, TOP });

        for (int c = 0; c < 15; ++c) {
            const int dims[] = { 64, 96, 128, 256, 512, 576, 80, 144 };
            shape s;
            s.type = types[c % 5];
            s.head_dim = dims[pick(0, ggml_is_quantized(s.type) ? 5 : 7)];
            s.g = c % 4 == 0 ? pick(1, 16) : pick(1, 4);
            s.w = c % 6 == 0 ? pick(1, 100) : pick(1, 40);
            s.n_head_kv = pick(1, 2);
            s.n = s.w + (c % 7 == 0 ? pick(0, 2) : pick(3, 300));
            s.softcap = c % 3 == 0 ? 20.0f : 0.0f;
            s.sinks = pick(0, 1);
            s.kernel = c % 8 == 0 ? 127 : 2 * pick(0, 6) + 1;
            s.pool = pick(0, LLAMA_SNAPKV_POOLING_NOSINK);
            s.reduce = pick(0, 1);
            s.own = 0.25f * (float) pick(0, 2);
            gpu.n_processors = pick(1, 3);
            test_scoring(s);
        }
        test_select(10);
    }

    for (const ggml_type type : types) {
        test_evict(type, 64, 3, 50, 17, 8, 42);
        test_evict(type, 128, 2, 300, 100, 32, 268);
        test_evict(type, 256, 1, 40, 0, 40, 0);
        test_evict(type, 96, 4, 9, 9, 0, 9);
    }
    test_evict(GGML_TYPE_F16, 80, 5, 30, 12, 3, 20);  // units of 16 bytes
    test_evict(GGML_TYPE_Q8_0, 32, 3, 30, 12, 3, 20); // of 2

    printf("largest error in units of the tolerance: stats %.2f, votes %.2f\n", max_error_stats, max_error_votes);
    printf("%s\n", n_failed ? "FAILED" : "passed");
    return n_failed != 0;
}
