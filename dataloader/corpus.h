// The text to train on where no other is given: the project's own sources and documents, gathered by scripts/corpus when
// the program is built and carried inside it, so that it is found from any working directory.
#ifndef DATALOADER_CORPUS_H
#define DATALOADER_CORPUS_H

#include <stddef.h>

// Lives as long as the program. Only programs that link corpus.o besides the library have it: train_gpt does.
const unsigned char *bundled_corpus(size_t *size);

#endif
