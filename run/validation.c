// The last lines about a run's validation.
#include "run/validation.h"

#include <math.h>
#include <stdio.h>

#include "dataloader/bigram.h"

void validation_print(const Run *run, const Validation *v, const Training *t) {
    double loss = t->validation_loss;
    if (run->task != NULL) {
        printf("validation loss %.4f nats per answer, %.1f%% of them right (by chance %.1f%%), over %lld windows of "
               "%lld tokens\n",
               loss, 100 * t->accuracy, 100 * task_chance(run->task), (long long)v->windows,
               (long long)run->options.context);
        return;
    }
    printf("validation loss %.4f nats per token", loss);
    const char *unit = tokens_unit(run->validation);
    if (unit == NULL) {
        printf(", perplexity %.2f, over %lld windows of %lld tokens\n", exp(loss), (long long)v->windows,
               (long long)run->options.context);
        return;
    }
    printf(" = %.4f bits per %s, over %lld windows of %lld tokens\n", loss / log(2.0), unit, (long long)v->windows,
           (long long)run->options.context);
    double bigram;
    Error err;
    if (!bigram_loss(run->train, 0, run->train_end, &v->loader, v->window, v->windows, &bigram, &err)) {
        fprintf(stderr, "train_gpt: no bigram baseline: %s\n", err.message);
        return;
    }
    printf("%s-bigram model %.4f nats per token = %.4f bits per %s, same training split, same windows\n", unit, bigram,
           bigram / log(2.0), unit);
}
