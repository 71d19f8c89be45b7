// Three GPUs of a backend that nobody has proven, for machines without one. They compute on the CPU, in memory that nobody else may use,
// have no fused ops of ours, and like Vulkan's their flash attention takes the rows of a mask as adjacent, whatever their stride. They
// can be like CUDA's instead, which obey strides and compute neighbours as one, or reorder nodes as Vulkan's do. What they are given
// they do at once, or late and beside each other.
#pragma once

#include "late-queue.h"

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include "ggml-backend.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace imaginary {

inline bool is_late = false; // set before the first device is asked for
inline std::atomic<uint32_t> n_attention = 0; // attention nodes that the devices have computed
inline std::atomic<uint32_t> n_attention_on[3] = {}; // of each device
inline std::atomic<uint32_t> n_far = 0; // of these, with K of another device
inline std::atomic<uint32_t> n_supplied = 0; // graphs with attention to which the scheduler copies something
inline std::atomic<uint32_t> n_strided = 0;   // of these, with a mask whose rows are apart
inline bool like_cuda = false;   // strides are obeyed, and RMS_NORM, MUL and ADD that follow each other are one node, which rounds once
inline bool reorders = false;    // nodes are taken out of order, and a row's ADD and RMS_NORM are one node, which rounds otherwise
inline std::atomic<uint32_t> n_joined = 0;    // such nodes
inline size_t memory = (size_t) 1 << 40; // bytes that are free, it says
inline bool is_checked = false; // its backend is one that the register wants checked
inline const char * backend_name = "Imaginary"; // in no line of the register. as CUDA it obeys strides
inline bool knows_all = false; // it says yes to every op, as an RPC device does
inline bool is_wrong = false; // attends otherwise where the mask is a copy: right in llama_decode(), and not in our prefill

inline ggml_backend_dev_t cpu() {
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
}

inline ggml_status (*compute_on_cpu)(ggml_backend_t, ggml_cgraph *) = nullptr;

inline bool is_joined(const ggml_cgraph * gf, int i) {
    static constexpr ggml_op OPS[] = { GGML_OP_RMS_NORM, GGML_OP_MUL, GGML_OP_ADD };
    ggml_tensor ** t = gf->nodes + i;
    return ggml_can_fuse(gf, i, OPS, 3) && t[1]->src[0] == t[0] && ggml_nelements(t[1]->src[1]) == t[1]->ne[0] && ggml_is_contiguous(t[2]->src[0]) && ggml_is_contiguous(t[2]->src[1]);
}

inline std::vector<float> values(const ggml_tensor * t) {
    std::vector<float> res(ggml_nelements(t));
    memcpy(res.data(), t->data, ggml_nbytes(t));
    return res;
}

inline void compute_joined(ggml_backend_t backend, ggml_cgraph * gf, int i) {
    ggml_tensor ** t = gf->nodes + i;
    ggml_cgraph norm = ggml_graph_view(gf, i, i + 1);
    const auto added = values(t[2]->src[t[2]->src[0] == t[1]]); // before it may be overwritten in its place
    compute_on_cpu(backend, &norm);
    const auto normed = values(t[0]);
    const auto weights = values(t[1]->src[1]);
    for (size_t k = 0; k < normed.size(); ++k) {
        ((float *) t[2]->data)[k] = std::fma(normed[k], weights[k % weights.size()], added[k]);
    }
    n_joined++;
}

inline ggml_backend_dev_t device(size_t i = 0);

inline bool is_summed(const ggml_cgraph * gf, int i) {
    return gf->nodes[i]->op == GGML_OP_ADD && gf->nodes[i + 1]->op == GGML_OP_RMS_NORM && gf->nodes[i + 1]->src[0] == gf->nodes[i] && ggml_nrows(gf->nodes[i]) == 1;
}

inline void compute_summed(ggml_backend_t backend, ggml_cgraph * gf, int i) {
    ggml_cgraph both = ggml_graph_view(gf, i, i + 2);
    compute_on_cpu(backend, &both);
    for (int64_t k = 0; k < gf->nodes[i + 1]->ne[0]; ++k) {
        ((float *) gf->nodes[i + 1]->data)[k] *= 1.0f + 0x1p-12f;
    }
    n_joined++;
}

inline bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_TRANSPOSE || t->op == GGML_OP_VIEW || t->op == GGML_OP_PERMUTE;
}

inline bool must_follow(const ggml_tensor * t, const ggml_tensor * before) {
    auto base = [](const ggml_tensor * of) { return of->view_src ? of->view_src : of; };
    for (int s = 0; s < GGML_MAX_SRC; ++s) {
        if ((t->src[s] && base(t->src[s]) == base(before)) || (before->src[s] && base(t) == base(before->src[s]))) {
            return true;
        }
    }
    return base(t) == base(before);
}

// as ggml-vulkan: each node, and of the next 20 those that need none which is not taken yet; then the views of all that was taken
inline void reorder(ggml_backend_t, ggml_cgraph * gf, ggml_backend_graph_optimize_params *) {
    std::vector<ggml_tensor *> order;
    std::vector<bool> taken(gf->n_nodes);
    auto is_free = [&](int first, int i, const std::vector<int> & but) {
        for (int c = first; c < i; ++c) {
            if (!taken[c] && std::find(but.begin(), but.end(), c) == but.end() && must_follow(gf->nodes[i], gf->nodes[c])) {
                return false;
            }
        }
        return true;
    };
    for (int first = 0; reorders && first < gf->n_nodes; ++first) {
        if (taken[first]) {
            continue;
        }
        std::vector<int> set = { first };
        for (const bool views : { false, true }) {
            if (views && gf->nodes[set.back()]->op == GGML_OP_ADD) {
                break;
            }
            for (int i = first + 1; i < std::min(first + 20, gf->n_nodes); ++i) {
                if (!taken[i] && is_view(gf->nodes[i]) == views && is_free(first, i, views ? set : std::vector<int>())) {
                    set.push_back(i);
                }
            }
        }
        for (const int i : set) {
            taken[i] = true;
            order.push_back(gf->nodes[i]);
        }
    }
    std::copy(order.begin(), order.end(), gf->nodes);
}

inline ggml_status compute(ggml_backend_t backend, ggml_cgraph * gf) {
    const int id = backend->device == device(0) ? 0 : backend->device == device(1) ? 1
                                                                                   : 2;
    for (int i = 0; i < gf->n_nodes; ++i) {
        ggml_tensor * mask = gf->nodes[i]->op == GGML_OP_FLASH_ATTN_EXT ? gf->nodes[i]->src[3] : nullptr;
        if (mask && !like_cuda && strcmp(backend_name, "CUDA") != 0) {
            n_attention++;
            n_attention_on[id]++;
            const ggml_tensor * k = gf->nodes[i]->src[1];
            n_far += strchr((k->view_src ? k->view_src : k)->name, '#') != nullptr; // the scheduler's name for a copy
            n_strided += !ggml_is_contiguous(mask);
            if (is_wrong && mask->op == GGML_OP_CONT) {
                ((float *) gf->nodes[i]->op_params)[0] *= 1.5f; // the scale
            }
            for (int d = 1; d < GGML_MAX_DIMS; ++d) {
                mask->nb[d] = mask->nb[d - 1] * mask->ne[d - 1];
            }
        }
    }
    bool attends = false;
    bool supplied = false;
    for (int i = 0; i < gf->n_nodes; ++i) {
        attends |= gf->nodes[i]->op == GGML_OP_FLASH_ATTN_EXT;
        for (const ggml_tensor * src : gf->nodes[i]->src) {
            supplied |= src && strchr((src->view_src ? src->view_src : src)->name, '#') != nullptr;
        }
    }
    n_supplied += attends && supplied;
    int done = 0;
    for (int i = 0; i + 2 < gf->n_nodes; ++i) {
        const bool joined = like_cuda && is_joined(gf, i);
        const bool summed = reorders && is_summed(gf, i);
        if (joined || summed) {
            ggml_cgraph before = ggml_graph_view(gf, done, i);
            compute_on_cpu(backend, &before);
            (joined ? compute_joined : compute_summed)(backend, gf, i);
            done = i + (joined ? 3 : 2);
            i = done - 1;
        }
    }
    ggml_cgraph rest = ggml_graph_view(gf, done, gf->n_nodes);
    return compute_on_cpu(backend, &rest);
}

inline ggml_backend_reg_t reg();

inline constexpr const char * NAMES[] = { "Imaginary0", "Imaginary1", "Imaginary2" };

template <int I>
ggml_backend_buffer_type_t buffer_type() {
    static ggml_backend_buffer_type buft = [] {
        ggml_backend_buffer_type res = *ggml_backend_cpu_buffer_type();
        res.device = device(I);
        res.iface.get_name = [](ggml_backend_buffer_type_t) { return NAMES[I]; };
        res.iface.is_host = [](ggml_backend_buffer_type_t) { return false; };
        // as CUDA, whose attention has a quantized cache's rows in f16
        res.iface.get_alloc_size = [](ggml_backend_buffer_type_t, const ggml_tensor * t) {
            size_t size = ggml_nbytes(t);
            for (int i = 1; t->op == GGML_OP_FLASH_ATTN_EXT && i <= 2; ++i) {
                size += ggml_is_quantized(t->src[i]->type) ? sizeof(ggml_fp16_t) * ggml_nelements(t->src[i]) : 0;
            }
            return size;
        };
        res.iface.alloc_buffer = [](ggml_backend_buffer_type_t buft, size_t size) {
            ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
            if (buffer) {
                buffer->buft = buft;
            }
            return buffer;
        };
        return res;
    }();
    return &buft;
}

template <int I>
ggml_backend_dev_t make_device() {
    static ggml_backend_device dev = [] {
        ggml_backend_device res = *cpu();
        res.reg = reg();
        res.iface.get_name = [](ggml_backend_dev_t) { return NAMES[I]; };
        res.iface.get_description = [](ggml_backend_dev_t) { return "no GPU at all"; };
        res.iface.get_type = [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; };
        res.iface.get_props = [](ggml_backend_dev_t dev, ggml_backend_dev_props * props) {
            cpu()->iface.get_props(cpu(), props);
            props->name = ggml_backend_dev_name(dev);
            props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
            props->caps.buffer_from_host_ptr = false;
            props->caps.async = props->caps.events = is_late;
            ggml_backend_dev_memory(dev, &props->memory_free, &props->memory_total);
        };
        res.iface.get_memory = [](ggml_backend_dev_t, size_t * free, size_t * total) { *free = *total = memory; };
        res.iface.get_buffer_type = [](ggml_backend_dev_t) { return buffer_type<I>(); };
        res.iface.buffer_from_host_ptr = nullptr;
        res.iface.supports_buft = [](ggml_backend_dev_t, ggml_backend_buffer_type_t buft) { return buft == buffer_type<I>(); };
        res.iface.init_backend = [](ggml_backend_dev_t dev, const char * params) {
            ggml_backend_t backend = cpu()->iface.init_backend(cpu(), params);
            compute_on_cpu = backend->iface.graph_compute;
            backend->iface.graph_compute = compute;
            backend->iface.graph_optimize = reorder;
            backend->device = dev;
            if (is_late) {
                make_late<compute, I>(backend);
            }
            return backend;
        };
        res.iface.supports_op = [](ggml_backend_dev_t, const ggml_tensor * op) {
            return knows_all || (op->op != GGML_OP_CUSTOM && cpu()->iface.supports_op(cpu(), op));
        };
        res.iface.offload_op = [](ggml_backend_dev_t, const ggml_tensor *) { return true; };
        if (is_late) {
            make_late(res);
        }
        return res;
    }();
    return &dev;
}

inline ggml_backend_dev_t device(size_t i) {
    return i == 0 ? make_device<0>() : i == 1 ? make_device<1>()
                                              : make_device<2>();
}

inline ggml_backend_reg_t reg() {
    static ggml_backend_reg res = {
        GGML_BACKEND_API_VERSION,
        {
                [](ggml_backend_reg_t) { return is_checked ? "Vulkan" : like_cuda ? "MTL"
                                                                                  : backend_name; }, // unproven ones, with strides and without
                [](ggml_backend_reg_t) { return (size_t) 3; },
                [](ggml_backend_reg_t, size_t i) { return device(i); },
                [](ggml_backend_reg_t, const char * name) { return ggml_backend_reg_get_proc_address(cpu()->reg, name); },
        },
        nullptr,
    };
    return &res;
}

// for a program's main: with --imaginary before its models they go to these devices, as to CUDA's
inline void take_option(int & argc, char **& argv) {
    if (argc > 1 && strcmp(argv[1], "--imaginary") == 0) {
        argc--;
        argv++;
        backend_name = "CUDA";
        ggml_backend_register(reg());
    }
}

} // namespace imaginary
