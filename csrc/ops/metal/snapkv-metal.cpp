#include "ops/metal/snapkv-metal.h"

#include "snapkv-metal.h"

#include "snapkv-metal-args.h"
#include "ops/snapkv-op.h"

#include "ggml-backend-impl.h"
#include <algorithm>
#include <initializer_list>
#include <mutex>
#include <unordered_map>

// snapkv.metal with its header, as text (snapkv-metal-source.cpp.in)
extern const char snapkv_metal_source[];

// csrc/snapkv.h, which needs llama.h: LLAMA_SNAPKV_AGGREGATION_MAX
static constexpr int AGGREGATION_MAX = 1;

// threads of a threadgroup, if the pipeline allows as many
static constexpr int N_THREADS = 256;
static constexpr int N_THREADS_SELECT = 1024;

//
// kernels
//

static const char * const kernels[] = { "snapkv_stats", "snapkv_stats_merge", "snapkv_votes", "snapkv_select", "snapkv_evict" };

static ggml_metal_pipeline_with_params pipeline_get(ggml_metal_library_t lib, const char * name) {
    return ggml_metal_library_compile_pipeline(lib, name, name, nullptr); // upstream caches by name
}

// NULL if the kernels do not compile, which is tried once. Command buffers of a graph are encoded in parallel
static ggml_metal_library_t library_get(ggml_metal_device_t dev) {
    static std::mutex mutex;
    static std::unordered_map<ggml_metal_device_t, ggml_metal_library_t> libraries;

    std::lock_guard<std::mutex> lock(mutex);
    const auto it = libraries.find(dev);
    if (it != libraries.end()) {
        return it->second;
    }
    ggml_metal_library_t lib = ggml_metal_library_init_from_source(dev, snapkv_metal_source, true);
    for (const char * name : kernels) {
        if (lib && !pipeline_get(lib, name).pipeline) {
            ggml_metal_library_free(lib);
            lib = nullptr;
        }
    }
    return libraries[dev] = lib;
}

static int n_threads(ggml_metal_pipeline_with_params pipeline, int wanted) {
    return std::min(wanted, ggml_metal_pipeline_max_theads_per_threadgroup(pipeline) / 32 * 32);
}

//
// shapes
//

static int k_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32: return SNAPKV_METAL_F32;
        case GGML_TYPE_F16: return SNAPKV_METAL_F16;
        case GGML_TYPE_BF16: return SNAPKV_METAL_BF16;
        case GGML_TYPE_Q8_0: return SNAPKV_METAL_Q8_0;
        case GGML_TYPE_Q4_0: return SNAPKV_METAL_Q4_0;
        default: return -1;
    }
}

static size_t shmem_max(ggml_metal_device_t dev) {
    return ggml_metal_device_get_props(dev)->max_theadgroup_memory_size;
}

static size_t tile_bytes(const snapkv_metal_scoring_args & args) {
    return args.tile * SNAPKV_METAL_STRIDE(args.head_dim) * sizeof(float);
}

// threadgroup memory: STATS a tile, then a (maximum, sum) for each key and row in the same place
static size_t stats_bytes(const snapkv_metal_scoring_args & args, int nth) {
    return std::max(tile_bytes(args), (size_t) nth * SNAPKV_METAL_UNIT * 2 * sizeof(float));
}

// VOTES a tile, a (sum, maximum) of each thread, votes of each query head and attention mass
static size_t votes_bytes(const snapkv_metal_scoring_args & args, int nth) {
    return tile_bytes(args) + nth * 2 * sizeof(float) + (size_t) args.cols * (args.g + 1) * sizeof(float);
}

static size_t select_bytes(int nth) {
    return 260 * sizeof(uint32_t) + (size_t) nth * 4 * sizeof(uint32_t);
}

// of nodes that snapkv_op_stats() or snapkv_op_votes() made
static snapkv_metal_scoring_args scoring_args(ggml_metal_device_t dev, const ggml_tensor * op, const snapkv_op_params & params) {
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * k = op->src[1];

    snapkv_metal_scoring_args args = {};
    args.nbq1 = q->nb[1];
    args.nbq2 = q->nb[2];
    args.nbk1 = k->nb[1];
    args.nbk2 = k->nb[2];
    args.k_type = k_type(k->type);
    args.head_dim = (int32_t) k->ne[0];
    args.n = (int32_t) k->ne[1];
    args.w = (int32_t) q->ne[1];
    args.n_head_kv = (int32_t) k->ne[2];
    args.g = (int32_t) (q->ne[2] / k->ne[2]);
    for (args.tile = 32; args.tile * args.head_dim > 8 * 576;) { // about 19 KB
        args.tile /= 2;
    }
    args.scale = params.scale;
    args.softcap = params.softcap;
    if (params.kind == SNAPKV_OP_STATS) {
        args.n_splits = (int32_t) op->ne[3] - 1;
        args.has_sinks = op->src[2] != nullptr;
    } else {
        args.kernel_size = params.kernel_size;
        args.pooling = params.pooling;
        args.self_weight = params.self_weight;
        args.reduce_max = params.aggregation == AGGREGATION_MAX;
        // as many columns as memory holds, up to 256: past that the borders no longer matter
        const size_t room = shmem_max(dev);
        const size_t used = votes_bytes(args, N_THREADS);
        const size_t cols = room > used ? (room - used) / ((args.g + 1) * sizeof(float)) : 0;
        args.cols = (int32_t) std::min<size_t>(256, cols) / args.tile * args.tile;
    }
    return args;
}

static bool rows_contiguous(const ggml_tensor * t) {
    return t->nb[0] == ggml_type_size(t->type);
}

static bool supports_scoring(ggml_metal_device_t dev, const ggml_tensor * op, const snapkv_op_params & params) {
    const ggml_tensor * q = op->src[0];
    const ggml_tensor * k = op->src[1];
    if (k_type(k->type) < 0 || q->type != GGML_TYPE_F32 || op->type != GGML_TYPE_F32) {
        return false;
    }
    const int64_t head_dim = k->ne[0];
    const int64_t g = q->ne[2] / k->ne[2];
    const size_t align = k->type == GGML_TYPE_F32 ? 4 : 2;
    if (!rows_contiguous(q) || !rows_contiguous(k) || q->nb[1] % 4 != 0 || q->nb[2] % 4 != 0 || k->nb[1] % align != 0 || k->nb[2] % align != 0 ||
            head_dim != q->ne[0] || head_dim % 16 != 0 || head_dim % ggml_blck_size(k->type) != 0 || head_dim > SNAPKV_OP_MAX_HEAD_DIM ||
            q->ne[1] < 1 || q->ne[1] > SNAPKV_OP_MAX_ROWS || q->ne[1] > k->ne[1] || k->ne[1] > INT32_MAX / 2 ||
            g < 1 || g > SNAPKV_OP_MAX_GROUP || g * k->ne[2] != q->ne[2] || q->ne[3] != 1 || k->ne[3] != 1 || !ggml_is_contiguous(op)) {
        return false;
    }
    if (params.kind == SNAPKV_OP_STATS) {
        return op->ne[3] >= 2 && stats_bytes(scoring_args(dev, op, params), N_THREADS) <= shmem_max(dev);
    }
    return params.kernel_size >= 1 && params.kernel_size <= 127 && params.kernel_size % 2 == 1 && ggml_is_contiguous(op->src[2]) &&
            scoring_args(dev, op, params).cols >= params.kernel_size;
}

static bool supports_evict(const ggml_tensor * op, const snapkv_op_params & params) {
    const ggml_tensor * src = op->src[1];
    const ggml_tensor * ids = op->src[2];
    const size_t row_bytes = ggml_row_size(op->type, op->ne[0]);
    return op->type == src->type && op->ne[0] == src->ne[0] && rows_contiguous(op) && rows_contiguous(src) &&
            op->nb[1] % 2 == 0 && src->nb[1] % 2 == 0 && row_bytes % (2 * ids->ne[1]) == 0 &&
            ggml_is_contiguous(ids) && ids->ne[0] - 1 <= op->ne[1];
}

bool snapkv_metal_supports_op(ggml_metal_device_t dev, const ggml_tensor * op) {
    snapkv_op_params params;
    if (!snapkv_op_get_params(op, &params)) {
        return false;
    }
    bool res = false;
    switch (params.kind) {
        case SNAPKV_OP_STATS:
        case SNAPKV_OP_VOTES:
            res = supports_scoring(dev, op, params);
            break;
        case SNAPKV_OP_SELECT:
            res = ggml_is_contiguous(op->src[0]) && op->src[0]->ne[0] <= INT32_MAX / 2 && select_bytes(N_THREADS_SELECT) <= shmem_max(dev);
            break;
        case SNAPKV_OP_EVICT:
            res = supports_evict(op, params);
            break;
    }
    return res && library_get(dev);
}

//
// encoding
//

// as ggml-metal-ops.cpp has it
static ggml_metal_buffer_id buffer_get(const ggml_tensor * t) {
    const ggml_backend_buffer_t buffer = t->view_src ? t->view_src->buffer : t->buffer;
    return ggml_metal_buffer_get_id((ggml_metal_buffer_t) buffer->context, t);
}

// arguments at index 0, buffers from 1 on
template <typename T>
static void begin(ggml_metal_encoder_t enc, ggml_metal_pipeline_with_params pipeline, T & args, std::initializer_list<ggml_metal_buffer_id> buffers) {
    ggml_metal_encoder_set_pipeline(enc, pipeline);
    ggml_metal_encoder_set_bytes(enc, &args, sizeof(args), 0);
    int i = 0;
    for (const auto & buffer : buffers) {
        ggml_metal_encoder_set_buffer(enc, buffer, ++i);
    }
}

static void set_shmem(ggml_metal_encoder_t enc, size_t size) {
    ggml_metal_encoder_set_threadgroup_memory_size(enc, GGML_PAD(size, 16), 0);
}

static int div_up(int64_t a, int64_t b) {
    return (int) ((a + b - 1) / b);
}

static void encode_stats(ggml_metal_library_t lib, ggml_metal_encoder_t enc, const ggml_tensor * op, snapkv_metal_scoring_args args) {
    const auto stats = pipeline_get(lib, "snapkv_stats");
    const auto merge = pipeline_get(lib, "snapkv_stats_merge");
    const auto q = buffer_get(op->src[0]);
    const auto k = buffer_get(op->src[1]);
    const auto sinks = op->src[2] ? buffer_get(op->src[2]) : q; // something has to be bound
    const auto out = buffer_get(op);

    const int nth = n_threads(stats, N_THREADS);
    const int n_units = args.g * div_up(args.w, SNAPKV_METAL_UNIT);
    begin(enc, stats, args, { q, k, out });
    set_shmem(enc, stats_bytes(args, nth));
    ggml_metal_encoder_dispatch_threadgroups(enc, args.n_splits, args.n_head_kv, div_up(n_units, nth / args.tile), nth, 1, 1);

    ggml_metal_encoder_memory_barrier(enc);

    const int nth_merge = n_threads(merge, N_THREADS);
    begin(enc, merge, args, { sinks, out });
    ggml_metal_encoder_dispatch_threadgroups(enc, div_up((int64_t) args.w * args.g * args.n_head_kv, nth_merge), 1, 1, nth_merge, 1, 1);
}

static void encode_votes(ggml_metal_library_t lib, ggml_metal_encoder_t enc, const ggml_tensor * op, snapkv_metal_scoring_args args) {
    const auto votes = pipeline_get(lib, "snapkv_votes");
    const int nth = n_threads(votes, N_THREADS);
    begin(enc, votes, args, { buffer_get(op->src[0]), buffer_get(op->src[1]), buffer_get(op->src[2]), buffer_get(op) });
    set_shmem(enc, votes_bytes(args, nth));
    ggml_metal_encoder_dispatch_threadgroups(enc, div_up(args.n, args.cols - (args.kernel_size - 1)), args.n_head_kv, 1, nth, 1, 1);
}

static void encode_select(ggml_metal_library_t lib, ggml_metal_encoder_t enc, const ggml_tensor * op, const snapkv_op_params & params) {
    const ggml_tensor * votes = op->src[0];

    snapkv_metal_select_args args = {};
    args.n = (int32_t) votes->ne[0];
    args.n_head_kv = (int32_t) votes->ne[1];
    args.w = params.window;
    args.n_kept = (int32_t) op->ne[0] - 1;
    args.n_sink = params.n_sink;

    const auto select = pipeline_get(lib, "snapkv_select");
    const int nth = n_threads(select, N_THREADS_SELECT);
    begin(enc, select, args, { buffer_get(votes), buffer_get(op) });
    set_shmem(enc, select_bytes(nth));
    ggml_metal_encoder_dispatch_threadgroups(enc, args.n_head_kv, 1, 1, nth, 1, 1);
}

static void encode_evict(ggml_metal_library_t lib, ggml_metal_encoder_t enc, const ggml_tensor * op, const snapkv_op_params & params) {
    const ggml_tensor * src = op->src[1];
    const ggml_tensor * ids = op->src[2];
    const auto from = buffer_get(src);
    const auto to = buffer_get(op);

    snapkv_metal_evict_args args = {};
    args.nb_dst = op->nb[1];
    args.nb_src = src->nb[1];
    args.row_bytes = (uint32_t) ggml_row_size(op->type, op->ne[0]);
    args.head_bytes = args.row_bytes / (uint32_t) ids->ne[1];
    args.unit = 16;
    args.n_kept = (int32_t) ids->ne[0] - 1;
    args.row0 = params.window;
    while ((from.offs | to.offs | args.nb_dst | args.nb_src | args.head_bytes) % args.unit != 0) {
        args.unit /= 2;
    }

    const auto evict = pipeline_get(lib, "snapkv_evict");
    const int units = args.row_bytes / args.unit;
    const int nth = std::min(n_threads(evict, N_THREADS), (int) GGML_PAD(units, 32));
    begin(enc, evict, args, { from, buffer_get(ids), to });
    ggml_metal_encoder_dispatch_threadgroups(enc, div_up(units, nth), (int) op->ne[1], 1, nth, 1, 1);
}

void snapkv_metal_encode(ggml_metal_device_t dev, ggml_metal_encoder_t enc, const ggml_tensor * op) {
    snapkv_op_params params;
    GGML_ASSERT(snapkv_op_get_params(op, &params));

    ggml_metal_library_t lib = library_get(dev);
    switch (params.kind) {
        case SNAPKV_OP_STATS: encode_stats(lib, enc, op, scoring_args(dev, op, params)); break;
        case SNAPKV_OP_VOTES: encode_votes(lib, enc, op, scoring_args(dev, op, params)); break;
        case SNAPKV_OP_SELECT: encode_select(lib, enc, op, params); break;
        case SNAPKV_OP_EVICT: encode_evict(lib, enc, op, params); break;
        default: GGML_ABORT("unknown SnapKV op");
    }
}
