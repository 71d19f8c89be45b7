#include "recall/queries.h"

#include "state/context.h"
#include "upstream/access.h"

#include <algorithm>
#include <cstring>

using access = llama_snapkv_access;

llama_snapkv_watch::llama_snapkv_watch(llama_context & ctx, const llama_kv_cache & base, std::map<uint32_t, sequence> given) :
    ctx(ctx), base(base), sequences(std::move(given)), before(ctx.get_cparams().cb_eval), before_data(ctx.get_cparams().cb_eval_user_data) {
    for (const auto & layer : access::layers(base)) {
        for (const int32_t il : llama_snapkv_readers(base, (int32_t) layer.il)) {
            layers.push_back(il);
        }
    }
    set(on_node, this);
}

llama_snapkv_watch::~llama_snapkv_watch() {
    set(before, before_data);
}

// the context gives its own to the scheduler when it builds a graph, and not when it computes one again
void llama_snapkv_watch::set(ggml_backend_sched_eval_callback callback, void * data) {
    access::cparams(ctx).cb_eval = callback;
    access::cparams(ctx).cb_eval_user_data = data;
    ggml_backend_sched_set_eval_callback(ctx.get_sched(), callback, data);
}

int32_t llama_snapkv_watch::layer_of(const ggml_tensor * attn) const {
    for (const auto & res : access::gf_res_prev(ctx)) {
        if (!res) {
            continue;
        }
        for (const auto & node : res->get_fused_nodes()) {
            if (node.op == LLM_FUSED_OP_FLASH_ATTN && node.tensor == attn) {
                return std::find(layers.begin(), layers.end(), node.il) == layers.end() ? -1 : node.il;
            }
        }
    }
    return -1;
}

// a graph of several sequences has a plane for each, of streams that follow each other: the first one is where its K begins
void llama_snapkv_watch::read(const ggml_tensor * attn, int32_t il) {
    const ggml_tensor * q = attn->src[0]; // [head_dim, n_tokens, n_head, n_streams]
    const ggml_tensor * k = access::layer(base, il).k; // [n_embd_gqa, n_cells, n_streams]
    if (attn->src[1]->view_src != k) {
        complete = false;
        return;
    }
    const size_t stream0 = attn->src[1]->view_offs / k->nb[2];
    for (int64_t s = 0; s < q->ne[3]; ++s) {
        const auto found = sequences.find((uint32_t) (stream0 + s));
        if (found == sequences.end()) {
            continue;
        }
        auto & layer = found->second.queries->layers[il];
        layer.head_dim = (uint32_t) q->ne[0];
        layer.n_head = (uint32_t) q->ne[2];
        memcpy(&layer.scale, (const float *) attn->op_params + 0, sizeof(float));
        memcpy(&layer.softcap, (const float *) attn->op_params + 2, sizeof(float));
        const int64_t n_max = found->second.n_max;
        const size_t head = layer.head_dim * sizeof(float);
        for (int64_t i = std::max<int64_t>(0, q->ne[1] - n_max); i < q->ne[1]; ++i) {
            std::vector<float> token(layer.head_dim * layer.n_head);
            const size_t at = i * q->nb[1] + s * q->nb[3];
            if (q->nb[2] == head) {
                ggml_backend_tensor_get(q, token.data(), at, layer.n_head * head);
            } else {
                for (uint32_t h = 0; h < layer.n_head; ++h) {
                    ggml_backend_tensor_get(q, token.data() + h * layer.head_dim, at + h * q->nb[2], head);
                }
            }
            layer.tokens.push_back(std::move(token));
            if ((int64_t) layer.tokens.size() > n_max) {
                layer.tokens.pop_front();
            }
        }
    }
}

bool llama_snapkv_watch::on_node(ggml_tensor * t, bool ask, void * data) {
    auto & self = *static_cast<llama_snapkv_watch *>(data);
    const int32_t il = t->op == GGML_OP_FLASH_ATTN_EXT ? self.layer_of(t) : -1;
    if (ask) {
        self.before_asked = self.before && self.before(t, true, self.before_data);
        return il >= 0 || self.before_asked;
    }
    if (il >= 0) {
        self.read(t, il);
    }
    return !self.before_asked || self.before(t, false, self.before_data);
}
