#include "terminal/plan.h"

#include "terminal/report.h"

double visible_keys(const ModelConfig *config, int64_t context) {
    double keys = 0;
    for (int64_t l = 0; l < config->layers; l++) {
        const Visibility visibility = {.window = config_window(config, l, context)};
        double pairs = (double)visibility_pairs(&visibility, 0, (Chunk){0, context});
        keys += visibility.window == 0 ? 0.5 * (double)context : pairs / (double)context;
    }
    return keys;
}

double flops_per_token(const ModelConfig *config, const ParameterTable *table, double keys) {
    return 6.0 * (double)table->in_matrices + 14.0 * keys * (double)(config->heads * config->head_dim);
}

// Bytes that the busiest rank sends for attention in one step by one exchange; false where it cannot serve.
static bool bytes_per_step(const AttentionConfig *resolved, Exchange exchange, int64_t passes, int64_t *most) {
    AttentionConfig config = *resolved;
    Error unused;
    config.exchange = exchange;
    config.ulysses = exchange == resolved->exchange ? resolved->ulysses : 0;
    if (!attention_resolve(&config, &unused)) return false;
    *most = 0;
    for (int rank = 0; rank < config.ranks; rank++) {
        AttentionBytes bytes = attention_bytes_of_layers(&config, rank);
        int64_t sent = (bytes.forward + bytes.backward) * passes;
        if (sent > *most) *most = sent;
    }
    return true;
}

static void print_exchanges(FILE *out, const AttentionConfig *resolved, int64_t passes) {
    const Exchange exchanges[] = {EXCHANGE_RING, EXCHANGE_GATHER, EXCHANGE_ULYSSES, EXCHANGE_ULYSSES_RING};
    fprintf(out, "bytes sent by attention per rank and step (* is used)\n");
    for (int i = 0; i < 4; i++) {
        int64_t most;
        char text[32];
        if (!bytes_per_step(resolved, exchanges[i], passes, &most)) continue;
        format_bytes(text, (double)most);
        fprintf(out, "  %-14s %12s %s\n", exchange_name(exchanges[i]), text,
                exchanges[i] == resolved->exchange ? "*" : "");
    }
}

void print_plan(FILE *out, const ModelConfig *config, const ParameterTable *table, const AttentionConfig *attention,
                const Arena *rank_arena, size_t all_ranks, int64_t batch, int64_t passes) {
    char text[32];
    fprintf(out, "bytes of one rank by buffer\n");
    print_arena(out, rank_arena);
    format_bytes(text, (double)all_ranks);
    fprintf(out, "all ranks of this process together: %s\n", text);
    if (attention->ranks > 1) print_exchanges(out, attention, passes);
    double token = flops_per_token(config, table, visible_keys(config, attention->context));
    fprintf(out,
            "floating-point operations: %.4g per token (6 x %lld parameters in matrix products + %s), "
            "%.4g per step\n",
            token, (long long)table->in_matrices,
            config_has_windows(config, attention->context) ? "14 C for each key that a query sees, by layer"
                                                           : "7 L T C for causal attention",
            token * (double)batch * (double)attention->context);
}
