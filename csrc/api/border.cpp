// Failures of llama.cpp and ggml that would end the process: errors where that is possible, else one line and an exit status.
#include "snapkv.h"

#include "recall/recall.h"
#include "state/context.h"
#include "state/lock.h"
#include "state/placing.h"
#include "upstream/access.h"
#include "upstream/snapkv-alloc.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-model.h"

#include "ggml.h"

#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <new>
#include <string>

uint32_t llama_snapkv_n_positions(const llama_model * model) {
    return model && model->pos_embd ? (uint32_t) model->pos_embd->ne[1] : 0;
}

static std::string check_positions(const llama_context & ctx, const llama_batch & batch) {
    std::map<llama_seq_id, llama_pos> next; // a batch without positions goes on from the end of each sequence
    std::string error;
    for (int32_t i = 0; i < batch.n_tokens && error.empty() && llama_snapkv_n_positions(&ctx.get_model()) > 0; ++i) {
        const llama_seq_id seq_id = batch.seq_id ? batch.seq_id[i][0] : 0;
        if (!batch.pos && next.count(seq_id) == 0) {
            next[seq_id] = llama_memory_seq_pos_max(ctx.get_memory(), seq_id) + 1;
        }
        error = llama_snapkv_check_position(ctx.get_model(), batch.pos ? batch.pos[i] : next[seq_id]++);
    }
    return error;
}

// of a model with recurrent layers: a batch that fails before it is computed leaves what the sequences held
static int32_t decode(llama_context & ctx, const llama_batch & batch) {
    if (!llama_snapkv_access::snapkv(ctx) || !llama_snapkv_memory_of(ctx).recr) {
        return llama_decode(&ctx, batch);
    }
    llama_snapkv_placing placing(ctx);
    try {
        const int32_t rc = llama_decode(&ctx, batch);
        if (rc != 0) {
            placing.put_back(batch);
        }
        return rc;
    } catch (...) {
        placing.put_back(batch);
        throw;
    }
}

int32_t llama_snapkv_decode(llama_context * ctx, llama_batch batch) {
    try {
        if (llama_snapkv_refuses_batch(ctx, batch)) {
            return -1;
        }
        const std::string error = check_positions(*ctx, batch);
        if (!error.empty()) {
            llama_snapkv_set_error(error);
            return -1;
        }
        llama_snapkv_require_step(std::max(llama_n_threads(ctx), llama_n_threads_batch(ctx)));
        llama_snapkv_recall_step recall(*ctx, batch);
        const int32_t rc = decode(*ctx, batch);
        if (rc != 0) {
            llama_snapkv_set_error(rc == 1 ? "no free cells in the KV cache" : format("llama_decode() failed with %d", rc));
            return rc;
        }
        recall.end();
        return rc;
    } catch (const std::bad_alloc &) {
        llama_snapkv_set_error("out of memory");
    } catch (const std::exception & e) {
        llama_snapkv_set_error(e.what());
    }
    return -1;
}

//
// the end of the process
//

static int last_fd = -1;

static bool write_last(const char * line, size_t n) {
#ifdef _WIN32
    return _write(last_fd, line, (unsigned) n) >= 0;
#else
    return write(last_fd, line, n) >= 0;
#endif
}

// no allocation, no stdio, no destructors: nothing of the process can be trusted any more
[[noreturn]] static void last_words(const char * reason) {
    static char line[1024];
    void * some = malloc(LLAMA_SNAPKV_STEP_BYTES); // not freed: the heap may be what is broken
    const int n = snprintf(line, sizeof(line), "Error: llama.cpp: ended the process (%.600s); %s\n", reason,
            !some ? "memory has run out: lower --ctx, --budget, --layer-group or --ubatch-size, or give it more" : "this is a fault: please report this line");
    if (n > 0 && !write_last(line, strnlen(line, sizeof(line)))) {
        _exit(1);
    }
    _exit(1);
}

static void on_abort(const char * message) {
    const char * name = message; // the path of the builder's source file says nothing to a reader
    for (const char * c = message; *c; ++c) {
        name = *c == '/' || *c == '\\' ? c + 1 : name;
    }
    last_words(name);
}

[[noreturn]] static void on_terminate() {
    try {
        if (std::current_exception()) {
            std::rethrow_exception(std::current_exception());
        }
    } catch (const std::exception & e) {
        last_words(e.what());
    } catch (...) {
    }
    last_words("an exception of an unknown kind");
}

void llama_snapkv_exit_on_abort(int fd) {
    last_fd = fd;
    ggml_set_abort_callback(on_abort);
    std::set_terminate(on_terminate);
}
