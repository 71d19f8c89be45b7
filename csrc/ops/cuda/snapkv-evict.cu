// EVICT: rows of a cache tensor, copied as raw bytes. A thread has one place in the row and ROWS rows, so that its loads overlap.
#include "snapkv-common.cuh"

static constexpr int ROWS = 4;
static constexpr int THREADS = 256;

struct evict_args {
    char * dst;
    const char * src;
    const int32_t * ids; // [n_kept + 1, n_head_kv]
    int64_t dst_nb1, src_nb1;
    int64_t n_rows, n_kept, row0;
    int64_t units;      // of a row
    int64_t head_units; // of a head's part of a row
};

template <typename U>
static __global__ void __launch_bounds__(THREADS) snapkv_evict_kernel(evict_args a) {
    const int64_t u = (int64_t) blockIdx.y * blockDim.x + threadIdx.x;
    if (u >= a.units) {
        return;
    }
    const int32_t * ids = a.ids + (u / a.head_units) * (a.n_kept + 1);
    const int64_t first = (int64_t) blockIdx.x * blockDim.y * ROWS + threadIdx.y;

    U val[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int64_t i = first + r * (int64_t) blockDim.y;
        if (i < a.n_rows) {
            const int64_t row = i < a.n_kept ? (int64_t) ids[i] : a.row0 + i - a.n_kept;
            val[r] = reinterpret_cast<const U *>(a.src + row * a.src_nb1)[u];
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
        const int64_t i = first + r * (int64_t) blockDim.y;
        if (i < a.n_rows) {
            reinterpret_cast<U *>(a.dst + i * a.dst_nb1)[u] = val[r];
        }
    }
}

template <typename U>
static void evict(cudaStream_t stream, evict_args a, int64_t row_bytes, int64_t head_bytes) {
    a.units = row_bytes / (int64_t) sizeof(U);
    a.head_units = head_bytes / (int64_t) sizeof(U);

    const int nx = (int) (a.units < THREADS ? a.units : THREADS);
    const int ny = THREADS / nx;
    const dim3 block(nx, ny);
    const dim3 grid((unsigned) ((a.n_rows + ny * ROWS - 1) / (ny * ROWS)), (unsigned) ((a.units + nx - 1) / nx));
    snapkv_launch(snapkv_evict_kernel<U>, grid, block, 0, stream, a);
}

void snapkv_cuda_evict(cudaStream_t stream, const snapkv_op_params & params, ggml_tensor * op) {
    const ggml_tensor * src = op->src[1];
    const ggml_tensor * ids = op->src[2];

    evict_args a = {};
    a.dst = (char *) op->data;
    a.src = (const char *) src->data;
    a.ids = (const int32_t *) ids->data;
    a.dst_nb1 = (int64_t) op->nb[1];
    a.src_nb1 = (int64_t) src->nb[1];
    a.n_rows = op->ne[1];
    a.n_kept = ids->ne[0] - 1;
    a.row0 = params.window;
    if (a.n_rows == 0) {
        return;
    }
    const int64_t row_bytes = (int64_t) ggml_row_size(op->type, op->ne[0]);
    const int64_t head_bytes = row_bytes / ids->ne[1];

    // widest unit that every address of the copy is a multiple of
    const uint64_t all = (uint64_t) (uintptr_t) a.dst | (uint64_t) (uintptr_t) a.src | (uint64_t) a.dst_nb1 | (uint64_t) a.src_nb1 | (uint64_t) head_bytes;
    if (all % 16 == 0) {
        evict<uint4>(stream, a, row_bytes, head_bytes);
    } else if (all % 8 == 0) {
        evict<uint2>(stream, a, row_bytes, head_bytes);
    } else if (all % 4 == 0) {
        evict<uint32_t>(stream, a, row_bytes, head_bytes);
    } else {
        evict<uint16_t>(stream, a, row_bytes, head_bytes);
    }
}
