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

    const int AVG = LLAMA_SNAPKV_POOLING_AVG, MAX = LLAMA_SNAPKV_POOLING_MAX;
    const int SUM = LLAMA_SNAPKV_AGGREGATION_SUM, TOP = LLAMA_SNAPKV_AGGREGATION_MAX;

    if (threads) {
        gpu.wave = 64;
        test_scoring({ GGML_TYPE_F16, 64, 70, 5, 2, 3, 0.0f, true, 5, AVG, SUM });
        test_scoring({ GGML_TYPE_Q8_0, 96, 200, 40, 1, 2, 10.0f, false, 3, MAX, TOP });
        test_evict(GGML_TYPE_F16, 64, 2, 20, 9, 4, 16);
        return report();
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
            const shape s = shape_by_chance(c, dims, 40, 300);
            gpu.n_processors = pick(1, 3);
            test_scoring(s);
        }
        test_select(10);
    }

    test_evictions();
    return report();
}
