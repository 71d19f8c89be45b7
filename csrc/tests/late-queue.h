// A queue of work as a GPU has it: what is started goes on later, on a thread, in order, and two queues know nothing of each other but
// by events. What may be done at once is done as late as possible, so that a wait which is missing shows as wrong numbers.
#pragma once

#include "ggml-backend-impl.h"
#include "ggml-impl.h"

#include "ggml-cpp.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>

namespace imaginary {

inline std::atomic<int> n_computing = 0; // queues that compute a graph now
inline std::atomic<int> n_at_once = 0; // most of them at a time
inline std::atomic<uint32_t> n_beside = 0; // graphs that began beside another
inline std::atomic<int> delays[3] = {}; // microseconds before a graph of each device
inline std::atomic<int> copy_delay = 0; // and before a copy

inline void sleep(int microseconds) {
    if (microseconds > 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(microseconds));
    }
}

class late_event {
public:
    uint64_t record() { return ++n_recorded; } // by the host
    uint64_t last() const { return n_recorded; }
    void reach(uint64_t n) {
        const std::lock_guard<std::mutex> lock(mutex);
        n_reached = std::max(n_reached, n);
        changed.notify_all();
    }
    void wait(uint64_t n) {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&]() { return n_reached >= n; });
    }

private:
    uint64_t n_recorded = 0; // the host has one thread
    uint64_t n_reached = 0;
    std::mutex mutex;
    std::condition_variable changed;
};

class late_queue {
public:
    late_queue() :
        worker([this]() { run(); }) {
    }
    ~late_queue() {
        push([this]() { ended = true; });
        worker.join();
    }

    void push(std::function<void()> work) {
        const std::lock_guard<std::mutex> lock(mutex);
        todo.push_back(std::move(work));
        changed.notify_all();
    }
    void synchronize() {
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&]() { return todo.empty(); });
    }

private:
    void run() {
        while (!ended) {
            std::unique_lock<std::mutex> lock(mutex);
            changed.wait(lock, [&]() { return !todo.empty(); });
            const auto work = todo.front();
            lock.unlock();
            work();
            lock.lock();
            todo.pop_front();
            changed.notify_all();
        }
    }

    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> todo; // the first is being done
    bool ended = false;
    std::thread worker; // the last member: it uses the others
};

// a graph as it is when it is started: its tensors may be gone when it is computed
class late_graph {
public:
    explicit late_graph(const ggml_cgraph * gf) :
        ctx(ggml_init({ ggml_graph_overhead_custom(std::max(1, gf->n_nodes), false), nullptr, true })) {
        res = ggml_new_graph_custom(ctx.get(), std::max(1, gf->n_nodes), false);
        for (int i = 0; i < gf->n_nodes; ++i) {
            ggml_tensor * copy = copy_of(gf->nodes[i]);
            res->nodes[res->n_nodes++] = copy;
            const size_t k = ggml_hash_find(&gf->visited_hash_set, gf->nodes[i]);
            if (k != GGML_HASHSET_FULL && ggml_bitset_get(gf->visited_hash_set.used, k)) {
                res->use_counts[ggml_hash_insert(&res->visited_hash_set, copy)] = gf->use_counts[k];
            }
        }
    }
    ggml_cgraph * get() { return res; }

private:
    ggml_tensor * copy_of(const ggml_tensor * t) {
        auto & copy = copies[t];
        if (!copy) {
            copy = std::make_unique<ggml_tensor>(*t);
            ggml_tensor * found = copy.get(); // the map may move
            for (auto & src : found->src) {
                src = src ? copy_of(src) : nullptr;
            }
            found->view_src = found->view_src ? copy_of(found->view_src) : nullptr;
            return found;
        }
        return copy.get();
    }

    ggml_context_ptr ctx;
    ggml_cgraph * res = nullptr;
    std::unordered_map<const ggml_tensor *, std::unique_ptr<ggml_tensor>> copies;
};

inline std::map<ggml_backend_t, std::unique_ptr<late_queue>> & queues() {
    static std::map<ggml_backend_t, std::unique_ptr<late_queue>> res;
    return res;
}

inline late_queue * queue_of(ggml_backend_t backend) {
    const auto found = queues().find(backend);
    return found == queues().end() ? nullptr : found->second.get();
}

// a backend whose graphs are computed by `compute`, as one with a queue of its own. id: of its device
template <ggml_status (*compute)(ggml_backend_t, ggml_cgraph *), int id>
void make_late(ggml_backend_t backend) {
    static void (*free_on_cpu)(ggml_backend_t) = backend->iface.free;
    queues()[backend] = std::make_unique<late_queue>();
    backend->iface.free = [](ggml_backend_t backend) {
        queues().erase(backend);
        free_on_cpu(backend);
    };
    backend->iface.synchronize = [](ggml_backend_t backend) { queue_of(backend)->synchronize(); };
    backend->iface.graph_compute = [](ggml_backend_t backend, ggml_cgraph * gf) {
        auto graph = std::make_shared<late_graph>(gf);
        queue_of(backend)->push([=]() {
            const int n = ++n_computing;
            n_at_once = std::max<int>(n_at_once, n);
            n_beside += n > 1;
            sleep(delays[id]);
            compute(backend, graph->get());
            n_computing--;
        });
        return GGML_STATUS_SUCCESS;
    };
    backend->iface.set_tensor_async = [](ggml_backend_t backend, ggml_tensor * t, const void * data, size_t offset, size_t size) {
        queue_of(backend)->push([=, to = (char *) t->data + offset]() {
            sleep(copy_delay);
            memcpy(to, data, size);
        });
    };
    backend->iface.get_tensor_async = [](ggml_backend_t backend, const ggml_tensor * t, void * data, size_t offset, size_t size) {
        queue_of(backend)->push([=, from = (const char *) t->data + offset]() {
            sleep(copy_delay);
            memcpy(data, from, size);
        });
    };
    backend->iface.cpy_tensor_async = [](ggml_backend_t from, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
        if (!queue_of(from) || !queue_of(to)) {
            return false;
        }
        const auto done = std::make_shared<late_event>();
        done->record();
        queue_of(from)->push([=, a = src->data, b = dst->data, n = ggml_nbytes(src)]() {
            sleep(copy_delay);
            memcpy(b, a, n);
            done->reach(1);
        });
        if (from != to) {
            queue_of(to)->push([=]() { done->wait(1); });
        }
        return true;
    };
    backend->iface.event_record = [](ggml_backend_t backend, ggml_backend_event_t event) {
        auto * e = (late_event *) event->context;
        queue_of(backend)->push([=, n = e->record()]() { e->reach(n); });
    };
    backend->iface.event_wait = [](ggml_backend_t backend, ggml_backend_event_t event) {
        auto * e = (late_event *) event->context;
        queue_of(backend)->push([=, n = e->last()]() { e->wait(n); });
    };
}

inline void make_late(ggml_backend_device & dev) {
    dev.iface.event_new = [](ggml_backend_dev_t dev) { return new ggml_backend_event{ dev, new late_event() }; };
    dev.iface.event_free = [](ggml_backend_dev_t, ggml_backend_event_t event) {
        delete (late_event *) event->context;
        delete event;
    };
    dev.iface.event_synchronize = [](ggml_backend_dev_t, ggml_backend_event_t event) {
        auto * e = (late_event *) event->context;
        e->wait(e->last());
    };
}

} // namespace imaginary
