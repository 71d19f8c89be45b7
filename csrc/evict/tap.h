// The tap of a prompt: the caller sees what a layer's scorer has seen, and may choose the rows itself.
#pragma once

#include "evict/chooser.h"
#include "evict/scorer.h"
#include "staging/layer.h"
#include "staging/staging.h"
#include "state/task.h"

// calls it with a layer whose ballot has K and V, and what was chosen. throws std::invalid_argument if that is overwritten by
// what cannot be
void llama_snapkv_call_tap(const llama_snapkv_task & task, const llama_snapkv_staging & staging, const llama_snapkv_layer & layer, const llama_snapkv_ballot & ballot,
        llama_snapkv_chooser::choice & choice);
