#include "prefill/others.h"

#include "state/lock.h"
#include "upstream/access.h"

using access = llama_snapkv_access;

llama_snapkv_others::llama_snapkv_others(llama_context & ctx, llama_snapkv & sk, const llama_snapkv_memory & mem, const llama_snapkv_task & task, llama_snapkv_runner & runner,
        llama_snapkv_progress & progress) :
    ctx(ctx), sk(sk), mem(mem), task(task), runner(runner), progress(progress) {
}

bool llama_snapkv_call_on_yield(const llama_context & ctx, llama_snapkv & sk, const llama_snapkv_prompt & prompt) {
    const int64_t t0 = ggml_time_us();
    const llama_snapkv_lock lock(ctx, prompt.seq_id, /*all =*/false);
    const bool go_on = prompt.on_yield(prompt.yield_data);
    sk.seconds_others += (ggml_time_us() - t0) * 1e-6;
    return go_on;
}

void llama_snapkv_others::turn(const llama_kv_cache::slot_info & target, const llama_snapkv_batches & batches) {
    const llama_seq_id seq_id = task.prompt.seq_id;
    // in caches that all sequences share, cells that will be this one's look taken
    llama_snapkv_held_cells base(*mem.base, seq_id, target.idxs[0]);
    llama_snapkv_held_cells swa;
    if (mem.iswa) {
        swa = llama_snapkv_held_cells(*mem.iswa->get_swa(), seq_id, batches.ring());
    }
    access::n_outputs(ctx) = 0;
    progress.pause();
    runner.swap();

    const bool go_on = llama_snapkv_call_on_yield(ctx, sk, task.prompt);

    runner.swap();
    progress.resume();
    swa.release();
    base.release();
    if (!go_on) {
        throw llama_snapkv_aborted();
    }
}
