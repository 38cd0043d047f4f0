// The bundled text, as corpus.S puts it into the program.
#include "dataloader/corpus.h"

extern const unsigned char corpus_begin[], corpus_end[]; // corpus.S

const unsigned char *bundled_corpus(size_t *size) {
    *size = (size_t)(corpus_end - corpus_begin);
    return corpus_begin;
}
