// States of recurrent layers, for the outside: kept, gone back to, taken away and brought back.
#include "snapkv.h"

#include "state/context.h"
#include "state/lock.h"
#include "state/logits.h"
#include "state/recurrent.h"
#include "upstream/access.h"

#include "llama-impl.h"
#include "llama-memory-hybrid.h"

#include <algorithm>

using access = llama_snapkv_access;

static llama_snapkv_memory memory_of(const llama_context * ctx) {
    return llama_snapkv_memory_of(const_cast<llama_context &>(*ctx));
}

// null and llama_snapkv_last_error() set if there can be no states
static llama_snapkv * states_owner(const llama_context * ctx, llama_seq_id seq_id) {
    llama_snapkv * sk = llama_snapkv_of(ctx);
    if (sk && (seq_id < 0 || (uint32_t) seq_id >= ctx->n_seq_max() || !memory_of(ctx).recr)) {
        llama_snapkv_set_error("the model has no recurrent layers, or the sequence id is out of range");
        return nullptr;
    }
    return sk;
}

// what evaluation of the sequence has come to: of an ordinary one, all of its parts are there
static llama_pos end_of(const llama_snapkv_memory & mem, llama_seq_id seq_id) {
    return mem.hybrid->seq_pos_max(seq_id) + 1;
}

static const llama_snapkv_states * states_of(const llama_context * ctx, llama_seq_id seq_id, bool in_vault) {
    llama_snapkv * sk = states_owner(ctx, seq_id);
    if (!sk) {
        return nullptr;
    }
    if (!in_vault) {
        return &memory_of(ctx).base->snapkv.states_of(seq_id);
    }
    const auto vault = sk->vaults.find(seq_id);
    return vault == sk->vaults.end() ? nullptr : &vault->second.states;
}

bool llama_snapkv_keep_state(llama_context * ctx, llama_seq_id seq_id, bool with_logits) {
    if (!states_owner(ctx, seq_id) || llama_snapkv_refuses(*ctx, seq_id)) {
        return false;
    }
    ctx->synchronize();
    ctx->memory_update(false);
    const auto mem = memory_of(ctx);
    const llama_pos end = end_of(mem, seq_id);
    if (end == 0) {
        llama_snapkv_set_error(format("sequence %d has no tokens whose state could be kept", seq_id));
        return false;
    }
    try {
        auto state = llama_snapkv_make_state(*mem.recr, end);
        llama_snapkv_read_state(*mem.recr, seq_id, 0, (int32_t) ctx->get_model().hparams.n_layer(), *state);
        if (with_logits && access::n_outputs(*ctx) > 0) {
            const float * logits = ctx->get_logits_ith(-1);
            state->logits.assign(logits, logits + ctx->get_model().vocab.n_tokens());
        }
        mem.base->snapkv.keep_state(seq_id, std::move(state));
    } catch (const std::exception &) {
        llama_snapkv_set_error("out of memory: a state of the recurrent layers");
        return false;
    }
    return true;
}

bool llama_snapkv_go_back(llama_context * ctx, llama_seq_id seq_id, llama_pos pos) {
    if (!states_owner(ctx, seq_id) || llama_snapkv_refuses(*ctx, seq_id)) {
        return false;
    }
    ctx->synchronize();
    ctx->memory_update(false);
    const auto mem = memory_of(ctx);
    const auto state = mem.base->snapkv.states_of(seq_id).last(pos);
    if (!state || state->pos != pos) {
        llama_snapkv_error() = format("no state of the recurrent layers is kept at position %d of sequence %d", pos, seq_id);
        return false;
    }
    try {
        float * logits = state->logits.empty() ? nullptr : llama_snapkv_reserve_logits(*ctx);
        llama_snapkv_write_state(*mem.recr, seq_id, *state);
        mem.base->seq_rm(seq_id, pos, -1);
        if (logits) {
            std::copy(state->logits.begin(), state->logits.end(), logits);
            llama_snapkv_show_logits(*ctx);
        }
    } catch (const std::exception & e) {
        llama_snapkv_set_error(e.what());
        return false;
    }
    return true;
}

uint32_t llama_snapkv_n_states(const llama_context * ctx, llama_seq_id seq_id, bool in_vault) {
    const auto * states = states_of(ctx, seq_id, in_vault);
    return states ? (uint32_t) states->all().size() : 0;
}

bool llama_snapkv_get_state(const llama_context * ctx, llama_seq_id seq_id, bool in_vault, uint32_t i, llama_snapkv_state * state) {
    const auto * states = states_of(ctx, seq_id, in_vault);
    if (!states || state->size != sizeof(*state) || i >= states->all().size()) {
        llama_snapkv_set_error("the caller's llama_snapkv_state is of another version, or there is no such state");
        return false;
    }
    const auto & found = *states->all()[i];
    state->pos = found.pos;
    state->data = found.data;
    state->n_bytes = llama_snapkv_state_bytes(*memory_of(ctx).recr);
    state->logits = found.logits.empty() ? nullptr : found.logits.data();
    return true;
}

bool llama_snapkv_add_state(llama_context * ctx, llama_seq_id seq_id, bool in_vault, const llama_snapkv_state * state) {
    llama_snapkv * sk = states_owner(ctx, seq_id);
    if (!sk || llama_snapkv_refuses(*ctx, seq_id)) {
        return false;
    }
    const auto mem = memory_of(ctx);
    if (state->size != sizeof(*state) || state->n_bytes != llama_snapkv_state_bytes(*mem.recr)) {
        llama_snapkv_set_error("the state is of another version, or of another model's recurrent layers");
        return false;
    }
    const auto vault = sk->vaults.find(seq_id);
    const auto record = mem.base->snapkv.get(seq_id);
    const llama_pos end = in_vault ? (vault == sk->vaults.end() ? 0 : (llama_pos) vault->second.n_tokens()) : end_of(mem, seq_id);
    const llama_pos begin = in_vault || !record ? 1 : (llama_pos) record->n_prompt;
    if (state->pos < begin || state->pos > end) {
        llama_snapkv_set_error(format("the state at position %d is not in [%d, %d], where the sequence can go back to", state->pos, begin, end));
        return false;
    }
    try {
        auto given = std::make_shared<llama_snapkv_kept_state>();
        given->pos = state->pos;
        given->data = (const uint8_t *) state->data;
        if (state->logits) {
            given->logits.assign(state->logits, state->logits + ctx->get_model().vocab.n_tokens());
        }
        if (in_vault) {
            vault->second.states.add(std::move(given));
        } else {
            mem.base->snapkv.keep_state(seq_id, llama_snapkv_own_state(*mem.recr, std::move(given)));
        }
    } catch (const std::exception &) {
        llama_snapkv_set_error("out of memory: a state of the recurrent layers");
        return false;
    }
    return true;
}
