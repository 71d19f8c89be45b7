// The fused ops (ops/snapkv-op.h) on every device: against float64, against the stock path on the same device, against the CPU.
//
//   test-snapkv-ops [test|perf] [--device NAME] [--seed N] [--filter TEXT] [--quick]
//   test-snapkv-ops perf        [--device NAME] [--quick] [--json FILE] [--n N,N,...] [--head-dim N] [--group N] [--threads N]
//
// The last line is a summary. Exits with 1 if something is wrong.

#include "test-snapkv-ops-device.h"
#include "test-snapkv-ops-perf.h"
#include "test-snapkv-ops-reference.h"

#include "evict/rank.h"

#include <cstdio>
#include <cstdlib>
#include <set>

static int n_cases = 0;
static int n_failed = 0;
static int n_unsupported = 0;
static double worst = 0.0; // error against float64, in units of what is allowed

// Relative error of a probability: dot products of up to 576 terms and exp in f32 are off by up to 2e-5 where logits are
// large. GPUs have faster, less exact exponentials, and tensor cores that truncate; those that multiply in f16 are compared
// with a reference of rounded q and k, so that the bound stays as tight.
static double tolerance_of(const ops_device & dev) {
    return dev.is_cpu ? 4e-5 : 1e-4;
}

static void report(const ops_device & dev, const std::string & what, const std::string & problems, bool supported = true) {
    n_cases++;
    if (!supported) {
        n_unsupported++;
        // the CPU runs everything
        n_failed += dev.is_cpu;
        printf("%s: %s: not supported\n", dev.name.c_str(), what.c_str());
    } else if (!problems.empty()) {
        n_failed++;
        printf("%s: %s: FAILED:%s\n", dev.name.c_str(), what.c_str(), problems.c_str());
    }
    fflush(stdout);
}

static void add(std::string & problems, bool wrong, const char * what, double value = 0.0) {
    if (wrong) {
        char buf[128];
        snprintf(buf, sizeof(buf), " [%s %g]", what, value);
        problems += buf;
    }
}

template <typename T>
static bool same_bits(const std::vector<T> & a, const std::vector<T> & b) {
    return a.size() == b.size() && memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

static float coverage_of(const ops_case & c, const std::vector<int32_t> & out, int h) {
    float res;
    memcpy(&res, &out[(size_t) h * (c.n_kept + 1) + c.n_kept], sizeof(res));
    return res;
}

// ids and coverage against the host's selection from the same votes
static void check_select(std::string & problems, const ops_case & c, const std::vector<float> & votes, const std::vector<int32_t> & out) {
    for (int h = 0; h < c.n_head_kv; ++h) {
        const float * pooled = &votes[(size_t) h * c.n];
        const float * mass = &votes[(size_t) (c.n_head_kv + h) * c.n];
        const std::vector<int32_t> ids(out.begin() + (size_t) h * (c.n_kept + 1), out.begin() + (size_t) h * (c.n_kept + 1) + c.n_kept);
        const std::vector<int32_t> expected = llama_snapkv_select(std::vector<float>(pooled, pooled + c.m()), c.n_kept, c.n_sink);
        add(problems, ids != expected, "ids differ from the selection by the op's own votes, head", h);

        const double coverage = llama_snapkv_coverage_of(std::vector<float>(mass, mass + c.n), expected, c.w);
        const double got = coverage_of(c, out, h);
        add(problems, !(std::fabs(got - coverage) <= 1e-5), "coverage", got - coverage);
        add(problems, !(got >= 0.0 && got <= 1.0), "coverage outside of [0, 1]", got);
    }
}

static void check_float64(std::string & problems, const ops_case & c, const ops_data & data, const ops_outputs & out, double tolerance, bool may_round) {
    ops_reference ref = ops_compute_reference(c, data);
    double stats = ops_error_of_stats(ref, out.stats, tolerance);
    double votes = ops_error_of_votes(ref.votes, out.votes, tolerance);
    if (may_round && !(std::max(stats, votes) <= 1.0)) {
        // exact products of rounded numbers then, as closely
        ref = ops_compute_reference(c, data, true);
        stats = ops_error_of_stats(ref, out.stats, tolerance);
        votes = ops_error_of_votes(ref.votes, out.votes, tolerance);
    }
    worst = std::max({ worst, stats, votes });
    add(problems, !(stats <= 1.0), "stats against float64", stats);
    add(problems, !(votes <= 1.0), "votes against float64", votes);

    for (int h = 0; h < c.n_head_kv; ++h) {
        for (int i = 0; i < c.w; ++i) {
            add(problems, out.votes[(size_t) h * c.n + c.m() + i] != 0.0f, "a vote for the window, head", h);
        }
        const std::vector<int32_t> ids(out.ids.begin() + (size_t) h * (c.n_kept + 1), out.ids.begin() + (size_t) h * (c.n_kept + 1) + c.n_kept);
        bool ascending = true;
        for (size_t i = 0; i < ids.size(); ++i) {
            const int32_t before = i ? ids[i - 1] : -1;
            ascending = ascending && ids[i] > before && ids[i] < c.m() && ((int) i >= c.n_sink || ids[i] == (int32_t) i);
        }
        add(problems, !ascending, "ids not ascending positions of the prefix with the sinks first, head", h);
        if (!ascending) {
            return;
        }
        const double choice = ops_error_of_ids(&ref.votes[(size_t) h * c.n], c.m(), ids, c.n_sink, tolerance);
        add(problems, !(choice <= 1.0), "choice against float64", choice);

        const double * mass = &ref.votes[(size_t) (c.n_head_kv + h) * c.n];
        double total = 0.0;
        double held = 0.0;
        for (int64_t j = 0; j < c.n; ++j) {
            total += mass[j];
            held += j >= c.m() ? mass[j] : 0.0;
        }
        for (const int32_t i : ids) {
            held += mass[i];
        }
        const double diff = coverage_of(c, out.ids, h) - held / total;
        add(problems, !(std::fabs(diff) <= tolerance), "coverage against float64", diff);
    }
}

// bytes of the target after eviction, which held `poison` before
static std::vector<uint8_t> evicted(const ops_case & c, ggml_type type, const std::vector<uint8_t> & cache, const std::vector<int32_t> & ids, uint8_t poison) {
    const size_t head = ggml_row_size(type, c.head_dim);
    const size_t row = head * c.n_head_kv;
    std::vector<uint8_t> res(row * (c.n_kept + c.w + 2 * OPS_MARGIN), poison);
    for (int i = 0; i < c.n_kept + c.w; ++i) {
        for (int h = 0; h < c.n_head_kv; ++h) {
            const int64_t from = i < c.n_kept ? ids[(size_t) h * (c.n_kept + 1) + i] : c.m() + i - c.n_kept;
            memcpy(&res[(i + OPS_MARGIN) * row + h * head], &cache[from * row + h * head], head);
        }
    }
    return res;
}

static void check_evict(std::string & problems, const ops_case & c, const ops_data & data, const ops_outputs & out, uint8_t poison) {
    add(problems, !same_bits(out.evicted_k, evicted(c, c.type_k, data.cache_k, out.ids, poison)), "evicted k");
    add(problems, !same_bits(out.evicted_v, evicted(c, c.type_v, data.cache_v, out.ids, poison)), "evicted v");
}

static void check_stock(std::string & problems, ops_device & dev, const ops_case & c, const ops_data & data, const ops_outputs & out) {
    if (c.m() == 0) {
        return; // stock ops cannot pool nothing
    }
    // stock: K and Q may go through TF32 or f16 on a GPU
    const double tolerance = dev.is_cpu ? 1e-4 : 1e-2;
    const ops_outputs stock = ops_run_stock(dev, c, data, out.ids, 0xff);
    if (!stock.supported) {
        return;
    }
    const std::vector<double> expected(stock.votes.begin(), stock.votes.end());
    const double votes = ops_error_of_votes(expected, out.votes, tolerance);
    add(problems, !(votes <= 1.0), "votes against the stock path", votes);
    for (int h = 0; h < c.n_head_kv; ++h) {
        const std::vector<float> pooled(stock.votes.begin() + (size_t) h * c.n, stock.votes.begin() + (size_t) h * c.n + c.m());
        const std::vector<double> exact(pooled.begin(), pooled.end());
        const std::vector<int32_t> ids(out.ids.begin() + (size_t) h * (c.n_kept + 1), out.ids.begin() + (size_t) h * (c.n_kept + 1) + c.n_kept);
        const double choice = ops_error_of_ids(exact.data(), c.m(), ids, c.n_sink, tolerance);
        add(problems, !(choice <= 1.0), "choice against the stock path", choice);
    }
    add(problems, !stock.evicted_k.empty() && !same_bits(stock.evicted_k, out.evicted_k), "evicted k against the stock path");
    add(problems, !stock.evicted_v.empty() && !same_bits(stock.evicted_v, out.evicted_v), "evicted v against the stock path");
}

// all ops in a row
static void test_chain(ops_device & dev, ops_device & cpu, const ops_case & c) {
    const ops_data data = ops_make_data(c);
    dev.set_threads(1);
    const ops_outputs out = ops_run_fused(dev, c, data, 0xff);
    if (!out.supported) {
        report(dev, c.name(), "", false);
        return;
    }
    std::string problems;
    check_float64(problems, c, data, out, tolerance_of(dev), !dev.is_cpu && !(c.q_f16 && c.type_k == GGML_TYPE_F16));
    check_select(problems, c, out.votes, out.ids);
    if (problems.empty()) {
        check_evict(problems, c, data, out, 0xff);
        check_stock(problems, dev, c, data, out);
    }

    // other threads, other bytes in the results before: only what is written by rule can be equal
    dev.set_threads(2 + (int) (c.seed % 2));
    ops_outputs again = ops_run_fused(dev, c, data, 0x7f);
    dev.set_threads(1);
    add(problems, !same_bits(out.stats, again.stats), "stats not reproducible");
    add(problems, !same_bits(out.votes, again.votes), "votes not reproducible");
    add(problems, !same_bits(out.ids, again.ids), "ids not reproducible");
    if (problems.empty()) {
        check_evict(problems, c, data, again, 0x7f);
    }

    if (!dev.is_cpu && problems.empty()) {
        const ops_outputs other = ops_run_fused(cpu, c, data, 0xff);
        // where q and k are f16 numbers, their products are the same on both
        const double tolerance = c.q_f16 && c.type_k == GGML_TYPE_F16 ? 2.0 * tolerance_of(dev) : 1e-2;
        const double votes = ops_error_of_votes(std::vector<double>(other.votes.begin(), other.votes.end()), out.votes, tolerance);
        add(problems, !(votes <= 1.0), "votes against the CPU", votes);
    }
    report(dev, c.name(), problems);
}

// votes as scoring would not make them
static void test_select(ops_device & dev, int pattern, int64_t n, int w, int n_kept, int n_sink) {
    ops_case c;
    c.n = n;
    c.w = w;
    c.n_kept = n_kept;
    c.n_sink = std::min(n_sink, n_kept);
    c.n_head_kv = 3;
    static const char * names[] = { "constant", "few values", "NaN", "all NaN", "-0", "negative", "denormal", "descending", "one bit", "no mass" };

    ops_random rnd(17 + n + pattern);
    std::vector<float> votes((size_t) n * c.n_head_kv * 2, 0.0f);
    for (size_t i = 0; i < votes.size(); ++i) {
        const bool is_mass = i >= votes.size() / 2;
        const int r = rnd.below(1000);
        float x = 0.25f;
        switch (is_mass ? 1 : pattern) {
            case 1: x = (float) (r % 7); break;
            case 2: x = r % 3 ? (float) r : NAN; break;
            case 3: x = NAN; break;
            case 4: x = r % 3 ? 0.0f : -0.0f; break;
            case 5: x = (float) (r - 500); break;
            case 6: x = (float) (r % 50) * 1e-45f; break;
            case 7: x = -(float) (i % n); break;
            case 8: x = 1.0f + (float) (r % 5) * 1.1920929e-7f; break;
            default: break;
        }
        votes[i] = is_mass && pattern == 9 ? 0.0f : x;
    }
    char what[128];
    snprintf(what, sizeof(what), "select of %s, n %lld w %d kept %d sinks %d", names[pattern], (long long) n, w, n_kept, n_sink);

    std::string problems;
    const ops_outputs out = ops_run_select(dev, c, votes, n_sink, 0xff);
    if (out.supported) {
        check_select(problems, c, votes, out.ids);
        add(problems, !same_bits(out.ids, ops_run_select(dev, c, votes, n_sink, 0x7f).ids), "ids not reproducible");
    }
    report(dev, what, problems, out.supported);
}

// does the comparison notice? on the CPU's results, which are right
static void test_mistakes(ops_device & cpu) {
    ops_case c;
    c.n_head_kv = 3;
    c.g = 2;
    c.w = 5;
    c.softcap = 5.0f;
    c.attn_sinks = true;
    c.sharp = 2.0f;
    c.own = 0.25f;
    for (const int64_t n : { 40, 1025 }) {
        for (const int pool : { LLAMA_SNAPKV_POOLING_AVG, LLAMA_SNAPKV_POOLING_MAX, LLAMA_SNAPKV_POOLING_NOSINK }) {
            c.n = n;
            c.pool = pool;
            const ops_data data = ops_make_data(c);
            const ops_outputs out = ops_run_fused(cpu, c, data, 0xff);
            for (int i = OPS_NONE; i < OPS_N_MISTAKES; ++i) {
                if (i == OPS_POOL_VALID_ONLY && pool == LLAMA_SNAPKV_POOLING_MAX) {
                    continue;
                }
                const ops_reference ref = ops_compute_reference(c, data, false, (ops_mistake) i);
                // with what is allowed to a GPU
                const bool accepted = ops_error_of_votes(ref.votes, out.votes, 1e-4) <= 1.0 && ops_error_of_stats(ref, out.stats, 1e-4) <= 1.0;
                std::string problems;
                add(problems, accepted != (i == OPS_NONE), "the comparison is wrong about mistake", i);
                report(cpu, "self-test of the comparison", problems);
            }

            std::string problems, expected;
            std::vector<int32_t> ids = out.ids; // one id less good
            const std::set<int32_t> kept(ids.begin(), ids.begin() + c.n_kept);
            int32_t other = (int32_t) c.m() - 1;
            while (kept.count(other)) {
                other--;
            }
            ids[c.n_kept / 2] = other;
            check_select(expected, c, out.votes, ids);
            add(problems, expected.empty(), "the comparison accepts a wrong id");
            ops_outputs wrong = out;
            wrong.evicted_k[wrong.evicted_k.size() - 1] ^= 1; // a row beyond the target
            expected.clear();
            check_evict(expected, c, data, wrong, 0xff);
            add(problems, expected.empty(), "the comparison accepts a byte beyond the target");
            report(cpu, "self-test of the comparison", problems);
        }
    }
}

static std::vector<ops_case> make_cases(uint32_t seed, bool quick) {
    std::vector<ops_case> res;
    auto push = [&res, seed](ops_case c) {
        c.seed = seed + (uint32_t) res.size();
        c.n_kept = std::min<int>(c.n_kept, (int) c.m());
        c.n_sink = std::min(c.n_sink, c.n_kept);
        res.push_back(c);
    };
    const ggml_type types[] = { GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_F32, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0 };

    // the borders
    for (const int w : { 1, 8, 32 }) {
        for (const int64_t n : { (int64_t) w, (int64_t) w + 1, (int64_t) 2 * w - 1, (int64_t) 1023, (int64_t) 1025 }) {
            ops_case c;
            c.w = w;
            c.n = n;
            c.type_k = types[res.size() % 5];
            c.q_f16 = c.type_k == GGML_TYPE_F16;
            c.n_sink = 2;
            c.kernel = n == 1023 ? 63 : 7;
            push(c);
        }
    }
    // the sizes that models have
    for (const int head_dim : { 64, 80, 96, 128, 256, 512, 576 }) {
        for (const ggml_type type : types) {
            if (head_dim % ggml_blck_size(type) == 0) {
                ops_case c;
                c.type_k = type;
                c.type_v = head_dim == 64 ? type : GGML_TYPE_F16;
                c.head_dim = head_dim;
                c.n_head_kv = head_dim == 256 ? 1 : 2;
                c.g = 4;
                c.w = 32;
                c.n = 1100;
                c.n_kept = 480;
                c.softcap = head_dim == 256 ? 50.0f : 0.0f;
                c.attn_sinks = head_dim == 64;
                push(c);
            }
        }
    }
    ops_case c;
    c.w = 256;
    c.g = 16;
    c.n = 300;
    c.n_head_kv = 1;
    push(c);
    c.w = 8;
    c.g = 40; // query heads of five layers that read one cache
    c.n = 600;
    push(c);
    c.w = 16;
    c.g = 5;
    c.n = 4096;
    c.n_kept = 1000;
    c.sharp = 4.0f;
    push(c);
    c.q_f16 = true;
    push(c);

    ops_random rnd(seed);
    const size_t n_total = quick ? 150 : 600;
    while (res.size() < n_total) {
        ops_case r;
        r.type_k = types[rnd.below(5)];
        r.type_v = types[rnd.below(5)];
        r.head_dim = rnd.below(8) ? rnd.pick({ 64, 80, 96, 128, 256, 512, 576 }) : 16 * (1 + rnd.below(36));
        r.n_head_kv = rnd.pick({ 1, 2, 3, 4, 8 });
        r.g = 1 + rnd.below(rnd.below(8) ? 16 : 64);
        r.w = rnd.below(2) ? rnd.pick({ 8, 16, 32, 64 }) : 1 + rnd.below(256);
        r.n = r.w + rnd.below(rnd.pick({ 3, 100, 3000 }));
        r.kernel = 1 + 2 * rnd.below(32);
        r.pool = rnd.pick({ LLAMA_SNAPKV_POOLING_AVG, LLAMA_SNAPKV_POOLING_MAX, LLAMA_SNAPKV_POOLING_NOSINK });
        r.reduce = rnd.below(2) ? LLAMA_SNAPKV_AGGREGATION_SUM : LLAMA_SNAPKV_AGGREGATION_MAX;
        r.own = rnd.pick({ 0.0f, 0.25f, 2.0f });
        r.softcap = rnd.pick({ 0.0f, 0.0f, 5.0f, 50.0f });
        r.attn_sinks = rnd.below(3) == 0;
        r.strided = rnd.below(4) != 0;
        r.q_view = rnd.below(3) != 0;
        r.q_f16 = rnd.below(2) != 0;
        r.sharp = rnd.pick({ 0.5f, 1.0f, 4.0f });
        r.n_kept = rnd.below((int) r.m() + 1);
        r.n_sink = rnd.pick({ 0, 4, 16 });
        if (r.head_dim % ggml_blck_size(r.type_k) == 0 && r.head_dim % ggml_blck_size(r.type_v) == 0 && r.work() < (quick ? 3e7 : 2e8)) {
            push(r);
        }
    }
    if (!quick) {
        for (const ggml_type type : { GGML_TYPE_F16, GGML_TYPE_Q4_0 }) {
            ops_case large;
            large.type_k = type;
            large.n = 131072;
            large.n_kept = 4000;
            large.n_sink = 4;
            large.q_f16 = true;
            push(large);
        }
    }
    return res;
}

static void test_device(ops_device & dev, ops_device & cpu, const ops_options & opt) {
    auto wanted = [&opt](const std::string & name) { return name.find(opt.filter) != std::string::npos; };
    dev.set_threads(1); // more spin, where cores are few
    cpu.set_threads(1);
    if (dev.is_cpu && wanted("self-test")) {
        test_mistakes(cpu);
    }
    for (int pattern = 0; pattern < 10 && wanted("select"); ++pattern) {
        for (const int64_t n : { 8, 9, 41, 1025, 4096, 70001 }) {
            const int m = (int) n - 8;
            for (const int n_kept : { 0, 1, m / 3, m - 1, m }) {
                if (n_kept >= 0 && n_kept <= m) {
                    test_select(dev, pattern, n, 8, n_kept, pattern % 2 ? 4 : 0);
                }
            }
        }
    }
    for (const ops_case & c : make_cases(opt.seed, opt.quick)) {
        if (wanted(c.name())) {
            test_chain(dev, cpu, c);
        }
    }
}

int main(int argc, char ** argv) {
    ops_options opt;
    if (!opt.parse(argc, argv)) {
        fprintf(stderr, "usage: %s [test|perf] [--device NAME] [--seed N] [--filter TEXT] [--quick]\n"
                        "       perf: [--json FILE] [--n N,N,...] [--head-dim N] [--group N] [--threads N]\n",
                argv[0]);
        return 2;
    }
    ggml_backend_load_all();
    ops_device cpu(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU));

    ops_perf_log log;
    int n_devices = 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        if (ggml_backend_dev_type(ggml_backend_dev_get(i)) == GGML_BACKEND_DEVICE_TYPE_ACCEL) {
            continue; // BLAS: a helper of the CPU's
        }
        ops_device dev(ggml_backend_dev_get(i));
        if (!opt.device.empty() && dev.name != opt.device) {
            continue;
        }
        n_devices++;
        printf("%s: %s\n", dev.name.c_str(), ggml_backend_dev_description(dev.dev));
        if (opt.perf) {
            ops_perf(dev, opt, log);
        } else {
            test_device(dev, cpu, opt);
        }
    }
    if (!opt.json.empty() && !log.write(opt.json)) {
        fprintf(stderr, "%s: cannot be written\n", opt.json.c_str());
        return 1;
    }
    if (opt.perf) {
        printf("%s: %d devices\n", n_devices ? "OK" : "FAILED", n_devices);
        return n_devices ? 0 : 1;
    }
    const bool ok = n_failed == 0 && n_cases > n_unsupported;
    printf("%s: %d cases on %d devices, %d failed, %d not supported; largest error %.2f of what is allowed\n", ok ? "OK" : "FAILED", n_cases, n_devices, n_failed,
            n_unsupported, worst);
    return ok ? 0 : 1;
}
