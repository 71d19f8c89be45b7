#include "prefill/progress.h"

#include "state/lock.h"
#include "upstream/access.h"

using access = llama_snapkv_access;

// time between two calls of the user's callback inside a graph
static constexpr int64_t CALLBACK_INTERVAL_US = 50 * 1000;

llama_snapkv_progress::llama_snapkv_progress(llama_context & ctx, const llama_snapkv_prompt & prompt) :
    ctx(ctx), prompt(prompt) {
    resume();
}

llama_snapkv_progress::~llama_snapkv_progress() {
    pause();
}

void llama_snapkv_progress::resume() {
    saved_abort = access::abort_callback(ctx);
    saved_abort_data = access::abort_callback_data(ctx);
    ctx.set_abort_callback(on_abort_poll, this);
}

void llama_snapkv_progress::pause() {
    ctx.set_abort_callback(saved_abort, saved_abort_data);
}

void llama_snapkv_progress::advance(uint32_t n_passes) {
    done += n_passes;
    if (!report()) {
        throw llama_snapkv_aborted();
    }
}

bool llama_snapkv_progress::report() {
    t_last_report_us = ggml_time_us();
    if (!stop && prompt.progress) {
        const llama_snapkv_lock lock(ctx, prompt.seq_id, /*all =*/true);
        stop = !prompt.progress(done, total, prompt.progress_data);
    }
    return !stop;
}

// from inside of a graph's computation
bool llama_snapkv_progress::on_abort_poll(void * data) {
    auto & progress = *static_cast<llama_snapkv_progress *>(data);
    if (progress.saved_abort && progress.saved_abort(progress.saved_abort_data)) {
        progress.stop = true;
    }
    if (!progress.stop && ggml_time_us() - progress.t_last_report_us > CALLBACK_INTERVAL_US) {
        progress.report();
    }
    return progress.stop;
}
