#include "upstream/snapkv-states.h"

#include <algorithm>

void llama_snapkv_states::add(llama_snapkv_kept_state_ptr state) {
    const auto at = std::lower_bound(states.begin(), states.end(), state->pos, [](const auto & s, llama_pos pos) { return s->pos < pos; });
    if (at != states.end() && (*at)->pos == state->pos) {
        *at = std::move(state);
        return;
    }
    states.insert(at, std::move(state));
    if (states.size() <= MAX) {
        return;
    }
    size_t least = 0;
    double smallest = 0.0;
    for (size_t i = 0; i + 1 < states.size(); ++i) {
        const llama_pos before = i == 0 ? 0 : states[i - 1]->pos;
        const double gap = (double) (states[i + 1]->pos - before) / (double) (states.back()->pos - before);
        if (i == 0 || gap < smallest) {
            least = i;
            smallest = gap;
        }
    }
    states.erase(states.begin() + least);
}

void llama_snapkv_states::truncate(llama_pos pos) {
    while (!states.empty() && states.back()->pos > pos) {
        states.pop_back();
    }
}

llama_snapkv_kept_state_ptr llama_snapkv_states::last(llama_pos pos) const {
    llama_snapkv_kept_state_ptr res;
    for (const auto & state : states) {
        if (state->pos <= pos) {
            res = state;
        }
    }
    return res;
}
