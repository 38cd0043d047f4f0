// The plan as text; what it adds up is stated by those who use it.
#include "run/plan.h"

#include "model/model.h"
#include "terminal/report.h"

// Bytes that the busiest rank sends for all layers in one step by one exchange; false where it cannot serve.
static bool bytes_per_step(const ModelConfig *model, const AttentionConfig *resolved, Exchange exchange, int64_t passes,
                           bool replayed, int64_t *most) {
    AttentionConfig config = *resolved;
    Error unused;
    config.exchange = exchange;
    config.ulysses = exchange == resolved->exchange ? resolved->ulysses : 0;
    if (!attention_resolve(&config, &unused)) return false;
    *most = 0;
    for (int rank = 0; rank < config.ranks; rank++) {
        int64_t sent = 0;
        for (int64_t l = 0; l < model->layers; l++) {
            const Mixer *tokens = layer_kind(model, l).tokens;
            if (tokens->bytes_sent == NULL) continue;
            AttentionBytes bytes = tokens->bytes_sent(model, l, &config, rank);
            sent += (bytes.forward * (replayed ? 2 : 1) + bytes.backward) * passes;
        }
        if (sent > *most) *most = sent;
    }
    return true;
}

static void print_exchanges(FILE *out, const ModelConfig *model, const AttentionConfig *resolved, int64_t passes,
                            bool replayed) {
    const Exchange exchanges[] = {EXCHANGE_RING, EXCHANGE_GATHER, EXCHANGE_ULYSSES, EXCHANGE_ULYSSES_RING};
    fprintf(out, "bytes sent by token mixers per rank and step (* is used)\n");
    for (int i = 0; i < 4; i++) {
        int64_t most;
        char text[32];
        if (!bytes_per_step(model, resolved, exchanges[i], passes, replayed, &most)) continue;
        format_bytes(text, (double)most);
        fprintf(out, "  %-14s %12s %s\n", exchange_name(exchanges[i]), text,
                exchanges[i] == resolved->exchange ? "*" : "");
    }
}

void print_plan(FILE *out, const ModelConfig *config, const ParameterTable *table, const AttentionConfig *attention,
                bool attends, bool replayed, const Arena *rank_arena, size_t all_ranks, int64_t batch, int64_t passes) {
    char text[32];
    fprintf(out, "bytes of one rank by buffer\n");
    print_arena(out, rank_arena);
    format_bytes(text, (double)all_ranks);
    fprintf(out, "all ranks of this process together: %s\n", text);
    if (attention->ranks > 1 && attends) print_exchanges(out, config, attention, passes, replayed);
    int64_t most;
    if (attention->ranks > 1 && !attends &&
        bytes_per_step(config, attention, attention->exchange, passes, replayed, &most)) {
        format_bytes(text, (double)most);
        fprintf(out, "bytes sent by token mixers per rank and step: %s\n", text);
    }
    fprintf(out, "parameters: %lld\n", (long long)table->in_model);
    double token = model_flops(config, table, attention->context), matrices = 6.0 * (double)table->in_matrices;
    fprintf(out,
            "floating-point operations: %.4g per token (6 x %lld parameters in matrix products + %.4g of token mixers), "
            "%.4g per step\n",
            token, (long long)table->in_matrices, token - matrices,
            token * (double)batch * (double)attention->context);
}
