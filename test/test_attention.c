// Distributed attention against the whole sequence in double precision (test/attention_problem.h): forward,
// log-sum-exp, dQ, dK and dV, for every exchange and number of ranks.
//
// Besides being right: no less exact on many ranks than on one; one rank gives the bits of the kernel called on the
// whole sequence; two runs give the same bits; every rank sends exactly the bytes of the formula.
#include "attention_problem.h"
#include "wide_device.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { LONG_CONTEXT = 260 };
#else
enum { LONG_CONTEXT = 1000 };
#endif

#ifdef __SANITIZE_THREAD__ // looks at exchanges, which know of no device, and is slowest in plain loops
enum { PLAIN_LOOPS = false };
#else
enum { PLAIN_LOOPS = true };
#endif

// ---- exactness ----------------------------------------------------------------------------------

// A score s is rounded by about u |s| (u = 2^-24), and that is the relative error of its probability. Besides there are
// an exponential, a few products and sums of up to T terms, blocked: some ulps each.
static double right_within(const Problem *problem) { return 0x1p-24 * (16 + problem->largest_score); }

static void check_exact(const Run *run, const Deviation one_rank[RESULTS]) {
    for (int r = 0; r < RESULTS; r++) {
        if (run->problem->visibility.window == 1 && (r == D_Q || r == D_K)) {
            for (int64_t i = 0; i < result_count(run->problem, r); i++) // a softmax of one score has no slope
                assert_true(fabsf(run->result[r][i]) < 1e-5f);
            continue;
        }
        Deviation found = deviation(run, r);
        if (found.rms > right_within(run->problem)) {
            fail_msg("%s: %s is off by %.2e, allowed %.2e", run_title(run), result_names[r], found.rms,
                     right_within(run->problem));
        }
        if (found.rms > 2 * one_rank[r].rms || found.max > 2 * one_rank[r].max) {
            fail_msg("%s: error of %s: %.2e (rms), %.2e (max); of one rank %.2e, %.2e", run_title(run), result_names[r],
                     found.rms, found.max, one_rank[r].rms, one_rank[r].max);
        }
    }
}

static void one_rank_deviations(const Problem *problem, MakeDevice *make_device, Deviation deviations[RESULTS]) {
    Run run = run_on(problem, make_device, 1, EXCHANGE_RING, 0);
    for (int r = 0; r < RESULTS; r++) deviations[r] = deviation(&run, r);
    free_run(&run);
}

// However many ranks and by whatever exchange: the error is at most twice that of one rank, on the whole and at its
// worst. The reference kernel works in double precision, so its one rank rounds most elements once and its worst one
// says little: on more ranks, its state being fp32 between chunks, the worst one may be twice that of the fast kernel's
// one rank.
static void every_exchange_is_exact(const Problem *problem, MakeDevice *make_device) {
    static const int ranks[] = {1, 2, 3, 4, 8};
    Deviation one_rank[RESULTS], fast[RESULTS];
    one_rank_deviations(problem, make_device, one_rank);
    one_rank_deviations(problem, fast_device, fast);
    for (int r = 0; r < RESULTS; r++) one_rank[r].max = fmax(one_rank[r].max, fast[r].max);
    for (size_t i = 0; i < sizeof ranks / sizeof ranks[0]; i++) {
        for (Way way = {EXCHANGE_AUTO, 0}; next_way(problem, ranks[i], &way);) {
            Run run = run_on(problem, make_device, ranks[i], way.exchange, way.ulysses);
            check_exact(&run, one_rank);
            check_bytes(&run);
            free_run(&run);
        }
    }
}

static void exact_with(int64_t B, int64_t T, int64_t H, int64_t KV, int64_t D) {
    Problem problem = make_problem(B, T, H, KV, D, 1);
    every_exchange_is_exact(&problem, fast_device);
    if (PLAIN_LOOPS && T < LONG_CONTEXT) every_exchange_is_exact(&problem, reference_device);
    free_problem(&problem);
}

static void one_token_per_chunk(void **state) { (void)state, exact_with(2, 16, 4, 2, 8); }
static void uneven_chunks(void **state) { (void)state, exact_with(2, 37, 8, 8, 8); }
static void grouped_heads(void **state) { (void)state, exact_with(1, 129, 12, 3, 16); }
static void one_key_value_head(void **state) { (void)state, exact_with(2, 37, 8, 1, 24); }
static void long_context(void **state) { (void)state, exact_with(1, LONG_CONTEXT, 4, 2, 32); }

// ---- windows and documents ----------------------------------------------------------------------

// Documents of 1 to `longest` tokens, in other places in every sequence: (B, T).
static int32_t *random_documents(int64_t B, int64_t T, int64_t longest) {
    int32_t *first = checked(malloc((size_t)(B * T) * sizeof *first));
    for (int64_t b = 0; b < B; b++) {
        int64_t begin = 0, end = 0;
        for (int64_t i = 0; i < T; i++) {
            if (i == end) {
                begin = i;
                end += 1 + (int64_t)(random_uniform(7, 7, (uint64_t)(b * T + i)) * (double)longest);
            }
            first[b * T + i] = (int32_t)begin;
        }
    }
    return first;
}

static void exact_seen(int64_t B, int64_t T, int64_t H, int64_t KV, Visibility visibility, bool reference) {
    Problem problem = make_problem_seen(B, T, H, KV, 8, 1, visibility);
    every_exchange_is_exact(&problem, fast_device);
    if (PLAIN_LOOPS && reference) every_exchange_is_exact(&problem, reference_device);
    free_problem(&problem);
}

// A window of one token, smaller than a chunk, of several chunks, and of all but one token; chunks uneven, heads
// grouped.
static void windows(void **state) {
    (void)state;
    static const int64_t windows[] = {1, 2, 5, 23, 84};
    for (size_t i = 0; i < sizeof windows / sizeof *windows; i++)
        exact_seen(2, 85, 8, i % 2 == 0 ? 8 : 2, (Visibility){.window = windows[i]}, i == 2);
    exact_seen(1, 16, 8, 4, (Visibility){.window = 2}, true); // one token per chunk
}

static void documents(void **state) {
    (void)state;
    static const int64_t longest[] = {3, 40};
    for (int i = 0; i < 2; i++) {
        int32_t *first = random_documents(2, 85, longest[i]);
        exact_seen(2, 85, 8, 4, (Visibility){.first = first, .stride = 85}, i == 0);
        exact_seen(2, 85, 8, 8, (Visibility){.window = 10, .first = first, .stride = 85}, i == 1);
        free(first);
    }
}

// What documents hide does not travel: every run above has held its bytes against attention_bytes, and these are fewer.
static void documents_save_bytes(void **state) {
    (void)state;
    enum { T = 850 };
    static const Exchange exchanges[] = {EXCHANGE_RING, EXCHANGE_GATHER};
    const Visibility all = {0};
    int32_t *first = random_documents(1, T, 20);
    const Visibility documents = {.first = first, .stride = T, .least = first};
    for (int P = 2; P <= 8; P *= 2) {
        for (int i = 0; i < 2; i++) {
            const AttentionConfig config = {
                .context = T, .ranks = P, .exchange = exchanges[i], .ulysses = 1, .shape = {1, 8, 4, 16, 1}, .element_bytes = 4};
            for (int rank = 0; rank < P; rank++) {
                AttentionBytes few = attention_bytes(&config, &documents, rank), many = attention_bytes(&config, &all, rank);
                // A link carries of each of 2 P chunks at most what one document has of it, 19 tokens.
                int64_t token = 2 * 4 * 16 * 4;
                assert_true(few.forward <= 2 * P * 19 * token && few.backward <= 2 * 2 * P * 19 * token);
                assert_true(few.forward < many.forward && few.backward < many.backward);
            }
        }
    }
    free(first);
}

// Vanilla too; and a window that holds all tokens, or documents of which there is one, change no bit.
static void hidden_keys_in_vanilla(void **state) {
    (void)state;
    int32_t *first = random_documents(2, 150, 60);
    for (int i = 0; i < 3; i++) {
        Visibility visibility = {.window = i == 0 ? 0 : 20, .first = i == 1 ? NULL : first, .stride = 150};
        Problem problem = make_problem_seen(2, 150, 4, 2, 16, 1, visibility);
        Run run = run_on(&problem, fast_device, 1, EXCHANGE_VANILLA, 0);
        for (int r = 0; r < RESULTS; r++) assert_true(deviation(&run, r).rms < right_within(&problem));
        free_run(&run);
        free_problem(&problem);
    }
    free(first);
}

static void limits_that_hide_nothing_change_no_bit(void **state) {
    (void)state;
    enum { T = 150 };
    static const int32_t one_document[2 * T] = {0};
    const Visibility limits[] = {{.window = T}, {.first = one_document, .stride = T}};
    const Exchange exchanges[] = {EXCHANGE_VANILLA, EXCHANGE_RING, EXCHANGE_RING, EXCHANGE_GATHER, EXCHANGE_ULYSSES};
    const int ranks[] = {1, 1, 3, 4, 2};
    Problem problem = make_problem(2, T, 4, 2, 16, 1);
    for (int way = 0; way < 5; way++) {
        problem.visibility = (Visibility){0};
        Run plain = run_on(&problem, fast_device, ranks[way], exchanges[way], 0);
        for (int i = 0; i < 2; i++) {
            problem.visibility = limits[i];
            Run run = run_on(&problem, fast_device, ranks[way], exchanges[way], 0);
            assert_same_bits(&run, &plain);
            free_run(&run);
        }
        free_run(&plain);
    }
    problem.visibility = (Visibility){0};
    free_problem(&problem);
}

// Probabilities of 1 and of exp(-1000) = 0, with the largest score anywhere: the carried state is scaled down to
// nothing, or what arrives is.
static void gaps_of_a_thousand(void **state) {
    (void)state;
    Problem problem = make_problem(2, 129, 8, 2, 16, 300);
    assert_true(problem.largest_gap > 1000);
    every_exchange_is_exact(&problem, fast_device);
    if (PLAIN_LOOPS) every_exchange_is_exact(&problem, reference_device);
    free_problem(&problem);
}

static void vanilla_is_exact(void **state) {
    (void)state;
    for (int grouped = 0; grouped < 2; grouped++) {
        Problem problem = make_problem(2, 150, 4, grouped ? 2 : 4, 16, grouped ? 300 : 1);
        Run run = run_on(&problem, fast_device, 1, EXCHANGE_VANILLA, 0);
        for (int r = 0; r < RESULTS; r++) assert_true(deviation(&run, r).rms < right_within(&problem));
        check_bytes(&run);
        free_run(&run);
        free_problem(&problem);
    }
}

// ---- bits ---------------------------------------------------------------------------------------

// The kernel by itself on the whole sequence, one chunk.
static Run without_ranks(const Problem *problem, MakeDevice *make_device) {
    Run run = {.problem = problem,
               .make_device = make_device,
               .config = {.context = problem->T, .ranks = 1, .shape = problem->shape}};
    for (int r = 0; r < RESULTS; r++) run.result[r] = checked(calloc((size_t)result_count(problem, r), sizeof(float)));
    const AttentionShape *s = &problem->shape;
    int64_t T = problem->T, query = s->heads * s->head_dim, key = s->kv_heads * s->head_dim, rows = s->heads * T;
    float *sum = unset_memory((size_t)(s->batch * rows) * sizeof *sum);
    Device device;
    make_device(&device, 0);
    lend_stated_scratch(&device, 1, 1, 1, stated_for_attention(&device, s, T));
    const AttentionKernels *kernels = device.attention;
    Chunk whole = {0, T};
    TokenView q = {problem->q, T * query, query}, d_out = {problem->d_out, T * query, query};
    TokenView out = {run.result[OUT], T * query, query};
    RowView log_sum_exp = {run.result[LOG_SUM_EXP], rows, T}, spare = {sum, rows, T};
    KeyValue kv = {whole,
                   {problem->k, T * key, key},
                   {problem->v, T * key, key},
                   {run.result[D_K], T * key, key},
                   {run.result[D_V], T * key, key}};
    QueryForward forward = {whole, q, {run.result[OUT], T * query, query}, log_sum_exp, spare, {0}};
    kernels->begin(&device, s, &forward);
    kernels->forward_pair(&device, s, &forward, &kv);
    kernels->finish(&device, s, &forward, out, log_sum_exp);
    QueryBackward backward = {whole, q, d_out, log_sum_exp, spare, {run.result[D_Q], T * query, query}, {0}};
    kernels->row_delta(&device, s, whole, out, d_out, spare);
    kernels->backward_pair(&device, s, &backward, &kv);
    device_return_scratch(&device);
    free(sum);
    return run;
}

static void one_rank_has_the_bits_of_the_kernel(void **state) {
    (void)state;
    MakeDevice *devices[] = {fast_device, reference_device};
    Problem problem = make_problem(2, 143, 6, 2, 16, 1);
    for (int i = 0; i < 2; i++) {
        Run direct = without_ranks(&problem, devices[i]);
        for (Way way = {EXCHANGE_AUTO, 0}; next_way(&problem, 1, &way);) {
            Run run = run_on(&problem, devices[i], 1, way.exchange, way.ulysses);
            assert_same_bits(&run, &direct);
            free_run(&run);
        }
        free_run(&direct);
    }
    free_problem(&problem);
}

// Again with other timing, and again over a scratch full of the last results.
static void same_bits_every_time(void **state) {
    (void)state;
    Problem problem = make_problem(2, 85, 8, 2, 16, 1);
    for (int P = 2; P <= 8; P *= 2) {
        for (Way way = {EXCHANGE_AUTO, 0}; next_way(&problem, P, &way);) {
            Run once = run_on(&problem, fast_device, P, way.exchange, way.ulysses);
            Run again = run_repeated(&problem, fast_device, P, way.exchange, way.ulysses, 3, false);
            assert_same_bits(&once, &again);
            check_bytes(&again);
            free_run(&once);
            free_run(&again);
        }
    }
    free_problem(&problem);
}

// They visit the same pairs and add the same parts in the same order. And Ulysses over all ranks works on whole
// sequences of whole heads, as one rank does, unless key/value heads are shared.
static void exchanges_agree_in_their_bits(void **state) {
    (void)state;
    Problem problem = make_problem(2, 85, 8, 4, 16, 1);
    for (int P = 2; P <= 5; P++) {
        Run ring = run_on(&problem, fast_device, P, EXCHANGE_RING, 0);
        Run gather = run_on(&problem, fast_device, P, EXCHANGE_GATHER, 0);
        assert_same_bits(&ring, &gather);
        free_run(&ring);
        free_run(&gather);
    }
    Run one = run_on(&problem, reference_device, 1, EXCHANGE_RING, 0);
    Run ulysses = run_on(&problem, reference_device, 4, EXCHANGE_ULYSSES, 0);
    assert_same_bits(&one, &ulysses);
    free_run(&one);
    free_run(&ulysses);
    free_problem(&problem);
}

// Nothing takes storage for fp32: with storage of another size, and a kernel that computes the same, the bits are the
// same.
static void storage_may_have_another_size(void **state) {
    (void)state;
    Problem problem = make_problem(2, 45, 8, 2, 8, 1);
    for (int P = 1; P <= 8; P *= 2) {
        for (Way way = {EXCHANGE_AUTO, 0}; next_way(&problem, P, &way);) {
            Run wide = run_on(&problem, wide_device, P, way.exchange, way.ulysses);
            Run usual = run_on(&problem, reference_device, P, way.exchange, way.ulysses);
            assert_same_bits(&wide, &usual);
            check_bytes(&wide);
            free_run(&wide);
            free_run(&usual);
        }
    }
    free_problem(&problem);
}

// ---- bytes and choices --------------------------------------------------------------------------

static AttentionConfig config_of(int64_t T, int P, Exchange exchange, int U, AttentionShape shape) {
    return (AttentionConfig){
        .context = T, .ranks = P, .exchange = exchange, .ulysses = U, .shape = shape, .element_bytes = sizeof(float)};
}

static AttentionConfig resolved(int64_t T, int P, Exchange exchange, int64_t B, int64_t H, int64_t KV, int64_t D) {
    Error err = {0};
    AttentionConfig config = config_of(T, P, exchange, 0, (AttentionShape){B, H, KV, D, 1});
    if (!attention_resolve(&config, &err)) fail_msg("%s", err.message);
    return config;
}

static const Visibility everything = {0};

static AttentionBytes sent_by_all(const AttentionConfig *config) {
    AttentionBytes sum = {0, 0};
    for (int rank = 0; rank < config->ranks; rank++) {
        AttentionBytes sent = attention_bytes(config, &everything, rank);
        sum.forward += sent.forward;
        sum.backward += sent.backward;
    }
    return sum;
}

// The closed forms for even chunks; every run above has held the bytes of each rank against attention_bytes.
static void bytes_in_closed_form(void **state) {
    (void)state;
    int64_t B = 3, T = 960, H = 8, KV = 4, D = 16;
    for (int P = 1; P <= 8; P++) {
        if (T % (2 * P) != 0) continue;
        int64_t block = 2 * B * KV * D * T * 4, quarters = 3 * (P - 1) * block / 4;
        AttentionConfig config = resolved(T, P, EXCHANGE_RING, B, H, KV, D);
        AttentionBytes sent = sent_by_all(&config);
        assert_int_equal(sent.forward, quarters);
        assert_int_equal(sent.backward, quarters + (P > 1 ? P * block : 0));
        config = resolved(T, P, EXCHANGE_GATHER, B, H, KV, D);
        sent = sent_by_all(&config);
        assert_int_equal(sent.forward, quarters);
        assert_int_equal(sent.backward, 2 * quarters);
        if (H % P != 0) continue;
        int64_t kv = KV >= P ? KV : P; // heads sent: each to every rank that needs it
        config = resolved(T, P, EXCHANGE_ULYSSES, B, H, KV, D);
        sent = sent_by_all(&config);
        assert_int_equal(sent.forward, (P - 1) * T / P * B * 4 * ((2 * H + 2 * kv) * D + H));
        assert_int_equal(sent.backward, (P - 1) * T / P * B * 4 * ((3 * H + 4 * kv) * D + 2 * H));
    }
}

// In closed form, for even chunks of c tokens: of a chunk the last min(c, W - 1 - distance) are seen by one that lies
// `distance` tokens after it. And fewer than without a window, where anything travels that can be left out.
static void windows_save_bytes(void **state) {
    (void)state;
    int64_t T = 960, H = 8, KV = 4, D = 16, token = 2 * KV * D * 4;
    for (int P = 2; P <= 8; P *= 2) {
        int64_t c = T / (2 * P);
        for (int64_t W = 1; W < T; W += 37) {
            int64_t gathered = 0;
            for (int owner = 0; owner < P; owner++) {
                for (int reader = 0; reader < P; reader++) {
                    for (int late = 0; reader != owner && late < 2; late++) {
                        int chunk = late ? 2 * P - 1 - owner : owner, early = reader, later = 2 * P - 1 - reader;
                        int next = early > chunk ? early : later > chunk ? later : -1;
                        int64_t seen = next < 0 ? 0 : W - 1 - (next - chunk - 1) * c;
                        gathered += seen < 0 ? 0 : seen < c ? seen : c;
                    }
                }
            }
            AttentionConfig config = resolved(T, P, EXCHANGE_GATHER, 1, H, KV, D);
            AttentionBytes sent = {0, 0}, plain = sent_by_all(&config);
            for (int rank = 0; rank < P; rank++) {
                AttentionBytes bytes = attention_bytes(&config, &(Visibility){.window = W}, rank);
                sent.forward += bytes.forward, sent.backward += bytes.backward;
            }
            assert_int_equal(sent.forward, gathered * token);
            assert_int_equal(sent.backward, 2 * gathered * token);
            assert_true(sent.forward <= plain.forward && (W > c || sent.forward < plain.forward));
            // Round the ring the end of each early chunk passes P - 1 links, that of a late one as many as have ranks
            // below, and gradients of both come home: links of all P.
            config = resolved(T, P, EXCHANGE_RING, 1, H, KV, D);
            AttentionBytes round = {0, 0};
            plain = sent_by_all(&config);
            for (int rank = 0; rank < P; rank++) {
                AttentionBytes bytes = attention_bytes(&config, &(Visibility){.window = W}, rank);
                round.forward += bytes.forward, round.backward += bytes.backward;
            }
            assert_true(round.forward <= plain.forward && round.backward < plain.backward);
            if (W > c) continue;
            int64_t end = W - 1, early = 0, late = 0;
            for (int owner = 0; owner < P - 1; owner++) early += P - 1; // the last rank's two chunks are one
            for (int owner = 1; owner < P; owner++) late += 1;          // only the next rank sees a late one
            assert_int_equal(round.forward, (early + late) * end * token);
            assert_int_equal(round.backward, round.forward + P * (2 * P - 2) * end * token);
        }
    }
}

// Counted one by one: the operations of pairs that documents hide and the layers' windows do not.
static void operations_saved_by_documents(void **state) {
    (void)state;
    enum { T = 85 };
    int32_t *first = random_documents(1, T, 30);
    AttentionConfig config = config_of(T, 1, EXCHANGE_RING, 1, (AttentionShape){1, 4, 2, 16, 1});
    config.window_count = 2;
    config.windows[0] = (LayersOfWindow){0, 3, 0};
    config.windows[1] = (LayersOfWindow){7, 2, 0};
    int64_t hidden = 0;
    for (int64_t i = 0; i < T; i++)
        for (int64_t j = 0; j <= i; j++)
            if (j < first[i]) hidden += i - j < 7 ? 5 : 3;
    assert_true(hidden > 0 && attention_flops_saved(&config, first) == 14.0 * 4 * 16 * (double)hidden);
    free(first);
}

// The exchange is chosen for all layers together: with little to send, what waits least; and it can serve.
static void windows_change_the_choice(void **state) {
    (void)state;
    Error err = {0};
    AttentionConfig config = config_of(1 << 17, 8, EXCHANGE_AUTO, 0, (AttentionShape){1, 16, 16, 64, 1});
    AttentionConfig windows = config;
    windows.window_count = 1;
    windows.windows[0] = (LayersOfWindow){4, 12, 0};
    assert_true(attention_resolve(&config, &err) && attention_resolve(&windows, &err));
    assert_int_equal(config.exchange, EXCHANGE_RING);    // hidden behind T^2 of work
    assert_int_equal(windows.exchange, EXCHANGE_GATHER); // ends of chunks, at once
}

static void table_of_bytes(void **state) {
    (void)state;
    print_message("bytes sent per layer by ranks 0 to 3 of 4: T = 129, B = 1, H = 8, KV = 2, D = 16, fp32\n");
    static const Exchange exchanges[] = {EXCHANGE_RING, EXCHANGE_GATHER, EXCHANGE_ULYSSES, EXCHANGE_ULYSSES_RING};
    for (int i = 0; i < 4; i++) {
        AttentionConfig config = resolved(129, 4, exchanges[i], 1, 8, 2, 16);
        AttentionBytes sent[4];
        for (int rank = 0; rank < 4; rank++) sent[rank] = attention_bytes(&config, &everything, rank);
        print_message("%-12s forward %6lld %6lld %6lld %6lld   backward %6lld %6lld %6lld %6lld\n",
                      exchange_name(exchanges[i]), (long long)sent[0].forward, (long long)sent[1].forward,
                      (long long)sent[2].forward, (long long)sent[3].forward, (long long)sent[0].backward,
                      (long long)sent[1].backward, (long long)sent[2].backward, (long long)sent[3].backward);
    }
}

static void chosen_exchange_can_serve(void **state) {
    (void)state;
    assert_int_equal(resolved(1, 1, EXCHANGE_AUTO, 1, 4, 4, 64).exchange, EXCHANGE_RING);
    // Much work for each byte: the ring. Little, and few heads of keys: all of them to everyone at once. Little, and
    // as many key/value heads as query heads: each rank its heads, if they can be shared.
    assert_int_equal(resolved(1 << 20, 4, EXCHANGE_AUTO, 1, 32, 8, 128).exchange, EXCHANGE_RING);
    assert_int_equal(resolved(512, 8, EXCHANGE_AUTO, 1, 32, 1, 64).exchange, EXCHANGE_GATHER);
    assert_int_equal(resolved(2048, 8, EXCHANGE_AUTO, 1, 32, 32, 64).exchange, EXCHANGE_ULYSSES);
    assert_int_equal(resolved(2048, 7, EXCHANGE_AUTO, 1, 32, 32, 64).ulysses, 1);
    for (int P = 1; P <= 12; P++) {
        for (int64_t T = 64; T <= 1 << 16; T *= 8) {
            AttentionConfig config = resolved(T, P, EXCHANGE_AUTO, 2, 12, 4, 64), again = config;
            Error err = {0};
            assert_true(config.exchange != EXCHANGE_AUTO && config.ulysses >= 1 && P % config.ulysses == 0);
            assert_true(attention_resolve(&again, &err)); // settled: nothing changes
            assert_memory_equal(&again, &config, sizeof config);
        }
    }
    assert_int_equal(resolved(64, 8, EXCHANGE_ULYSSES, 1, 8, 2, 16).ulysses, 8);
    assert_int_equal(resolved(64, 8, EXCHANGE_ULYSSES_RING, 1, 8, 8, 16).ulysses, 4);
    assert_int_equal(resolved(64, 8, EXCHANGE_ULYSSES_RING, 1, 6, 6, 16).ulysses, 2);
}

static void assert_refused(AttentionConfig config, const char *const words[], int count) {
    Error err = {0};
    assert_false(attention_resolve(&config, &err));
    assert_int_equal(err.exit_code, EXIT_USAGE);
    assert_null(strchr(err.message, '\n'));
    for (int i = 0; i < count; i++) {
        if (strstr(err.message, words[i]) == NULL) fail_msg("\"%s\" does not name %s", err.message, words[i]);
    }
}

static void what_cannot_be_served_is_refused(void **state) {
    (void)state;
    const char *const sharing[] = {"--attention", "--sp", "--heads", "--kv-heads"};
    const char *const context[] = {"--context", "--sp"};
    assert_refused(config_of(64, 8, EXCHANGE_ULYSSES, 0, (AttentionShape){1, 12, 12, 8, 1}), sharing, 4);
    assert_refused(config_of(64, 4, EXCHANGE_ULYSSES, 0, (AttentionShape){1, 12, 6, 8, 1}), sharing, 4);
    assert_refused(config_of(64, 7, EXCHANGE_ULYSSES_RING, 0, (AttentionShape){1, 7, 7, 8, 1}), sharing, 4);
    assert_refused(config_of(64, 4, EXCHANGE_ULYSSES_RING, 3, (AttentionShape){1, 12, 12, 8, 1}), sharing, 4);
    assert_refused(config_of(64, 2, EXCHANGE_VANILLA, 0, (AttentionShape){1, 4, 4, 8, 1}), sharing, 2);
    assert_refused(config_of(64, 1, EXCHANGE_RING, 0, (AttentionShape){1, 6, 4, 8, 1}), sharing + 2, 2);
    assert_refused(config_of(64, 1, EXCHANGE_AUTO, 0, (AttentionShape){1, 1, 1, 257, 1}), sharing + 2, 1);
    assert_refused(config_of(15, 8, EXCHANGE_RING, 0, (AttentionShape){1, 4, 4, 8, 1}), context, 2);
    assert_refused(config_of(3, 2, EXCHANGE_AUTO, 0, (AttentionShape){1, 4, 4, 8, 1}), context, 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_token_per_chunk),
        cmocka_unit_test(uneven_chunks),
        cmocka_unit_test(grouped_heads),
        cmocka_unit_test(one_key_value_head),
        cmocka_unit_test(long_context),
        cmocka_unit_test(windows),
        cmocka_unit_test(documents),
        cmocka_unit_test(documents_save_bytes),
        cmocka_unit_test(hidden_keys_in_vanilla),
        cmocka_unit_test(limits_that_hide_nothing_change_no_bit),
        cmocka_unit_test(gaps_of_a_thousand),
        cmocka_unit_test(vanilla_is_exact),
        cmocka_unit_test(one_rank_has_the_bits_of_the_kernel),
        cmocka_unit_test(same_bits_every_time),
        cmocka_unit_test(exchanges_agree_in_their_bits),
        cmocka_unit_test(storage_may_have_another_size),
        cmocka_unit_test(bytes_in_closed_form),
        cmocka_unit_test(windows_save_bytes),
        cmocka_unit_test(operations_saved_by_documents),
        cmocka_unit_test(windows_change_the_choice),
        cmocka_unit_test(table_of_bytes),
        cmocka_unit_test(chosen_exchange_can_serve),
        cmocka_unit_test(what_cannot_be_served_is_refused),
    };
    return cmocka_run_group_tests_name("attention", tests, NULL, NULL);
}
