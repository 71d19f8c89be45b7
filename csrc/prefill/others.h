// Between two chunks the context is an ordinary one, for other sequences: what the prefill needs of it is given back, and taken again.
#pragma once

#include "graph/runner.h"
#include "prefill/batches.h"
#include "prefill/progress.h"
#include "state/cells.h"
#include "state/context.h"
#include "state/task.h"

class llama_snapkv_others {
public:
    llama_snapkv_others(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_memory & mem, const llama_snapkv_task & task, llama_snapkv_runner & runner, llama_snapkv_progress & progress);

    // does the caller want turns of them?
    bool wait() const { return task.prompt.on_yield != nullptr; }

    // nothing of the prefill is being computed; target: its cells of the compact cache. throws llama_snapkv_aborted
    void turn(const llama_kv_cache::slot_info & target, const llama_snapkv_batches & batches);

private:
    llama_context & ctx;
    llama_snapkv & sk;
    const llama_snapkv_memory & mem;
    const llama_snapkv_task & task;
    llama_snapkv_runner & runner;
    llama_snapkv_progress & progress;
};

// calls on_yield, and counts its time as that of others; false to abort
bool llama_snapkv_call_on_yield(const llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt);
