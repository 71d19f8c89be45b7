// What the caller hears of a prefill, and how it ends one: by the prompt's callback, or by that of the context.
#pragma once

#include "snapkv.h"

#include "llama-context.h"

#include <cstdint>
#include <exception>

struct llama_snapkv_aborted : std::exception {};

// in the place of the context's abort callback, which it asks, too; its destructor puts that back
class llama_snapkv_progress {
public:
    llama_snapkv_progress(llama_context & ctx, const llama_snapkv_prompt & prompt);
    ~llama_snapkv_progress();

    llama_snapkv_progress(const llama_snapkv_progress &) = delete;
    llama_snapkv_progress & operator=(const llama_snapkv_progress &) = delete;

    // token passes through layer groups, in all; before the first graph is computed, and again where they become fewer
    void expect(uint64_t n_passes) { total = n_passes; }
    uint64_t get_done() const { return done; }

    // so many more are done. throws llama_snapkv_aborted
    void advance(uint32_t n_passes);

    // what is computed in between is not the prefill
    void pause();
    void resume();

private:
    static bool on_abort_poll(void * data);
    bool report();

    llama_context & ctx;
    const llama_snapkv_prompt & prompt;
    ggml_abort_callback saved_abort = nullptr;
    void * saved_abort_data = nullptr;
    uint64_t done = 0;
    uint64_t total = 0;
    int64_t t_last_report_us = 0;
    bool stop = false;
};
