// A table in which every view has one place, by a hash: there stands its map, or that of another view, which then gives
// way. So the table never grows. A map depends on nothing but what it was asked for by, all of which is compared, so
// that one found is right also when the memory has been freed and taken again for something else.
#include "attention/cuda/hopper/tensor_maps.h"

#include <stdlib.h>
#include <string.h>

#include "layers/cuda/context.h"

struct TensorMaps {
    enum { PLACES = 1024 }; // for the few hundred views of a model's layers, forward and backward
    struct Key {
        const void *data;
        int64_t batch_stride, token_stride, batch, tokens, channels;
        int64_t rows, parts; // rows 0: nobody's place
    } key[PLACES];
    CUtensorMap map[PLACES];
};

namespace hopper {

static int place_of(const TensorMaps::Key &key) { // FNV-1a, by words
    uint64_t words[sizeof key / 8], hash = 0xcbf29ce484222325;
    static_assert(sizeof words == sizeof key, "no padding");
    memcpy(words, &key, sizeof key);
    for (uint64_t word : words) hash = (hash ^ word) * 0x100000001b3;
    return (int)((hash ^ hash >> 32) % TensorMaps::PLACES);
}

CUtensorMap tensor_map_of(Device *device, const AttentionShape *shape, TokenView view, int64_t tokens, int64_t heads,
                          int rows) {
    TensorMaps *&maps = context_of(device)->tensor_maps;
    if (maps == NULL) {
        void *memory = NULL;
        if (posix_memalign(&memory, alignof(TensorMaps), sizeof(TensorMaps)) != 0)
            cuda_give_up(__FILE__, __LINE__, "out of memory for tensor maps");
        maps = static_cast<TensorMaps *>(memset(memory, 0, sizeof(TensorMaps)));
    }
    const int64_t batch = shape->batch, channels = heads * shape->head_dim, parts = shape->head_dim / 64;
    const TensorMaps::Key key = {view.data, view.batch_stride, view.token_stride, batch, tokens, channels, rows, parts};
    const int place = place_of(key);
    if (memcmp(&maps->key[place], &key, sizeof key) != 0) {
        maps->map[place] =
            tensor_map(view.data, view.batch_stride, view.token_stride, batch, tokens, channels, rows, (int)parts);
        maps->key[place] = key;
    }
    return maps->map[place];
}

} // namespace hopper
