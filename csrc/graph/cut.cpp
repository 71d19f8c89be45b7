#include "graph/cut.h"

#include "ops/snapkv-op.h"

#include "llama-model.h"

#include "ggml-impl.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <unordered_map>
#include <unordered_set>

// of a model that gives a layer two of these names, the last one is the layer's
static bool is_layer_output(const char * name) {
    return strcmp(name, "l_out") == 0 || strcmp(name, "nemotron_h_block_out") == 0 || strcmp(name, "ffn_residual") == 0;
}

llama_snapkv_graph llama_snapkv_graph_build(const llama_model & model, llm_graph_params params, uint32_t n_layer) {
    llama_snapkv_graph graph;
    graph.l_out.resize(n_layer, nullptr);

    // pointers, since later callbacks may rename a tensor
    params.cb = [&graph, cb = params.cb, gf = params.res->get_gf()](const llama_ubatch & ubatch, ggml_tensor * cur, const char * name, int il) {
        cb(ubatch, cur, name, il);
        if (il >= 0 && il < (int) graph.l_out.size() && is_layer_output(name)) {
            graph.l_out[il] = cur;
            // now, or nodes of the next layer's state would come before it in the graph, and on the wrong side of a cut
            ggml_build_forward_expand(gf, cur);
        }
    };
    graph.gf = model.build_graph(params);
    return graph;
}

uint32_t llama_snapkv_hidden_size(const llama_model & model) {
    return model.hparams.n_embd * (model.arch == LLM_ARCH_GEMMA3N ? model.hparams.n_altup : 1);
}

ggml_tensor * llama_snapkv_graph_attn(const llm_graph_result & res, int32_t il) {
    ggml_tensor * attn = nullptr;
    for (const auto & node : res.get_fused_nodes()) {
        if (node.op == LLM_FUSED_OP_FLASH_ATTN && node.il == il) {
            if (attn) {
                return nullptr;
            }
            attn = node.tensor;
        }
    }
    return attn;
}

static int find_node(const ggml_cgraph * gf, const ggml_tensor * t) {
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (gf->nodes[i] == t) {
            return i;
        }
    }
    return -1;
}

// turn a node into a view, so that its users read from elsewhere
static void redirect(ggml_tensor * t, ggml_tensor * view) {
    for (auto & src : t->src) {
        src = nullptr;
    }
    t->op = GGML_OP_VIEW;
    t->src[0] = view->view_src ? view->view_src : view;
    t->view_src = t->src[0];
    t->view_offs = view->view_offs;
    t->data = view->data;
    t->buffer = view->buffer;
}

static const ggml_tensor * root(const ggml_tensor * t) {
    return t->view_src ? t->view_src : t;
}

static bool is_view(const ggml_tensor * t) {
    return t->op == GGML_OP_NONE || t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_TRANSPOSE;
}

// writes to memory that outlives the graph: K and V of the cache, or a recurrent state. nothing depends on such a node
static bool is_store(const ggml_tensor * t) {
    return !is_view(t) && t->view_src && t->view_src->buffer;
}

// reads or writes a memory that the graph writes to
static bool is_stateful(const ggml_tensor * t, const std::unordered_set<const ggml_tensor *> & stores) {
    return !is_view(t) && (stores.count(root(t)) || std::any_of(std::begin(t->src), std::end(t->src), [&](const ggml_tensor * s) { return s && stores.count(root(s)); }));
}

uint32_t llama_snapkv_graph_cut(ggml_context * ctx, ggml_cgraph * dst, llama_snapkv_graph & graph, const llama_snapkv_cut_params & params) {
    ggml_cgraph * gf = graph.gf;

    int i0 = 0;
    int i1 = gf->n_nodes;
    ggml_tensor * out = nullptr;
    if (params.il1 < (int32_t) graph.l_out.size()) {
        out = graph.l_out[params.il1 - 1];
        i1 = find_node(gf, out) + 1;
        GGML_ASSERT(i1 > 0);
    }
    if (params.hidden_in) {
        ggml_tensor * in = graph.l_out[params.il0 - 1];
        i0 = find_node(gf, in) + 1;
        GGML_ASSERT(i0 > 0);
        redirect(in, params.hidden_in);
        for (int32_t il = params.il0; params.flat && il + 1 < params.il1; ++il) {
            redirect(graph.l_out[il], params.hidden_in);
        }
    }

    for (int i = 0; i < gf->n_leafs; ++i) {
        ggml_tensor * t = gf->leafs[i];
        if ((t->flags & GGML_TENSOR_FLAG_INPUT) && t != params.mask_input) {
            ggml_build_forward_expand(dst, t);
        }
    }

    std::unordered_set<const ggml_tensor *> stores; // what the whole graph writes to
    for (int i = 0; i < gf->n_nodes; ++i) {
        if (is_store(gf->nodes[i])) {
            stores.insert(root(gf->nodes[i]));
        }
    }

    // those of the cut, and what they are computed from. in the graph's order: devices compute some neighbours as one node, which
    // rounds otherwise
    std::unordered_set<const ggml_tensor *> wanted;
    for (int i = i1 - 1; i >= 0; --i) {
        const ggml_tensor * t = gf->nodes[i];
        if ((i >= i0 && (!params.store_only || is_store(t))) || wanted.count(t)) {
            wanted.insert(t);
            wanted.insert(std::begin(t->src), std::end(t->src));
        }
    }

    uint32_t n_foreign = 0;
    for (int i = 0; i < i1; ++i) {
        ggml_tensor * t = gf->nodes[i];
        if (!wanted.count(t)) {
            continue;
        }
        n_foreign += i < i0 && (t->op == GGML_OP_FLASH_ATTN_EXT || is_stateful(t, stores));
        if (t->flags & GGML_TENSOR_FLAG_COMPUTE) {
            ggml_build_forward_expand(dst, t);
        } else {
            ggml_build_forward_order(dst, t);
        }
        if (params.behind) {
            params.behind(t);
        }
    }

    if (params.hidden_out) {
        ggml_build_forward_expand(dst, ggml_cpy(ctx, out, params.hidden_out));
    }
    return n_foreign;
}

uint64_t llama_snapkv_graph_topology(const ggml_cgraph * gf) {
    std::unordered_map<const ggml_tensor *, uint64_t> index;
    index.reserve(gf->n_leafs + gf->n_nodes);

    uint64_t hash = 1469598103934665603ull; // FNV-1a
    auto mix = [&hash](uint64_t v) { hash = (hash ^ v) * 1099511628211ull; };

    auto visit = [&](const ggml_tensor * t) {
        auto id = [&](const ggml_tensor * s) -> uint64_t {
            if (!s) {
                return 0;
            }
            const auto it = index.find(s);
            return it == index.end() ? 1 : it->second;
        };
        mix(t->op);
        mix(t->type);
        mix(t->flags);
        mix(t->buffer != nullptr);
        for (const auto * src : t->src) {
            mix(id(src));
        }
        mix(id(t->view_src));
        index.emplace(t, index.size() + 2);
    };
    for (int i = 0; i < gf->n_leafs; ++i) {
        visit(gf->leafs[i]);
    }
    std::unordered_set<const ggml_tensor *> read;
    for (int i = 0; i < gf->n_nodes; ++i) {
        visit(gf->nodes[i]);
        read.insert(std::begin(gf->nodes[i]->src), std::end(gf->nodes[i]->src));
    }
    for (int i = 0; i < gf->n_leafs; ++i) {
        if (!read.count(gf->leafs[i])) {
            mix(ggml_nbytes(gf->leafs[i])); // which the allocator does not compare
        }
    }
    return hash;
}
