// wgmma: products that a warpgroup of 128 threads starts, and that come to pass when they are waited for.
//
// Each thread that calls one takes part in the warpgroup's next product; it begins when all 128 have. Operands in
// shared memory are read as late as allowed, when the first thread waits. An accumulator is poisoned in its threads'
// arrays as long as products that change it are under way, and its sums are kept here meanwhile; a wait puts them back.
//
// What is wrong with a product (an operand still on its way, not fenced, overwritten too early) is noted when it
// happens, and reported when its result is put back. If its operands have bytes that were never written, the result is
// no number anyway, and nothing is reported: a kernel may start a product of anything, if it does not look at the
// result.
#include "emulated/wgmma.h"

#include "emulated/checks.h"
#include "emulated/report.h"
#include "emulated/settings.h"

enum { MOST_PRODUCTS = 256, MOST_GROUPS = 256 }; // under way
static const uint32_t POISON = 0x7fadbad1;       // no number

struct Accumulator {
    float *sum; // 64 x columns
    int fragments, holders;
    bool garbage;
    Accumulator *next_free;
};
struct Product {
    EmulatedWgmma what;
    Accumulator *accumulator;
    uint32_t number;
    int arrived, waited; // threads
    bool garbage, computed;
    int a_pieces, pieces; // a's first
    uint16_t piece[MOST_PIECES];
    uint16_t a[PRODUCT_ROWS][PRODUCT_K]; // from registers
    const uint32_t *a_at[WARPGROUP_THREADS];
    void *where;
    uint16_t faulty_thread;
    void *faulty_where;
    char fault[400]; // "" if there is none
};
struct Warpgroup {
    Product *product[MOST_PRODUCTS]; // by number
    uint32_t begun;                  // by at least one thread
    uint32_t computed;               // all before
    uint32_t finished;               // waited for by all threads
    uint32_t group_end[MOST_GROUPS]; // products before the end of a group
    uint32_t groups;
    Accumulator *free;
};

static Warpgroup *warpgroup_of(const Thread *thread) {
    return thread->block->hopper->group[thread->number / WARPGROUP_THREADS];
}

void wgmma_begin_block(Block *block) {
    for (int i = 0; i < MOST_WARPGROUPS; i++) {
        Warpgroup *group = block->hopper->group[i];
        if (group != NULL) group->begun = group->computed = group->finished = group->groups = 0;
    }
}

void wgmma_end_thread(Thread *thread) {
    const HopperThread *mine = &thread->block->hopper->thread[thread->number];
    if (mine->held_count == 0) return;
    const Product *product = warpgroup_of(thread)->product[mine->held[0].last % MOST_PRODUCTS];
    report(thread, product->where, "ends with products under way: no wgmma_wait");
}

// ---- an accumulator's fragments -------------------------------------------------------------------------------------

// Thread t of a warpgroup holds in d[n] rows t / 32 * 16 + t % 32 / 4 and 8 more, columns 8 n + t % 4 * 2 and the next.
static float *fragment(const Accumulator *accumulator, int t, int n, int half) {
    const int row = t / 32 * 16 + t % 32 / 4 + half * 8;
    return accumulator->sum + row * accumulator->fragments * 8 + n * 8 + t % 4 * 2;
}
static void take(Accumulator *accumulator, int t, uint32_t *d, bool with_values) {
    for (int n = 0; n < accumulator->fragments && with_values; n++) {
        memcpy(fragment(accumulator, t, n, 0), d + n * 4, 8);
        memcpy(fragment(accumulator, t, n, 1), d + n * 4 + 2, 8);
    }
    for (int i = 0; i < accumulator->fragments * 4; i++) d[i] = POISON;
}
static bool is_poisoned(const uint32_t *d, int fragments) {
    uint32_t different = 0;
    for (int i = 0; i < fragments * 4; i++) different |= d[i] ^ POISON;
    return different == 0;
}
static void put_back(const Accumulator *accumulator, int t, uint32_t *d) {
    for (int n = 0; n < accumulator->fragments; n++) {
        memcpy(d + n * 4, fragment(accumulator, t, n, 0), 8);
        memcpy(d + n * 4 + 2, fragment(accumulator, t, n, 1), 8);
    }
}

static Accumulator *accumulator_get(Warpgroup *group, int fragments) {
    Accumulator *accumulator = group->free;
    if (accumulator != NULL) {
        group->free = accumulator->next_free;
    } else {
        accumulator = (Accumulator *)calloc(1, sizeof *accumulator);
        if (accumulator != NULL) accumulator->sum = (float *)malloc(PRODUCT_ROWS * MOST_COLUMNS * sizeof(float));
        if (accumulator == NULL || accumulator->sum == NULL) report_host("no memory for a product");
    }
    accumulator->fragments = fragments;
    accumulator->holders = 0;
    accumulator->garbage = false;
    return accumulator;
}

// ---- faults ---------------------------------------------------------------------------------------------------------

static void note(Product *product, const Thread *thread, void *where, const char *what, uint32_t piece) {
    if (product->fault[0] != 0) return;
    char place[200];
    describe(thread, thread->block->shared + piece * PIECE, place, sizeof place);
    product->faulty_thread = thread->number;
    product->faulty_where = where;
    snprintf(product->fault, sizeof product->fault, "%s: %s", what, place);
}
static void report_fault(Block *block, const Product *product) {
    if (product->fault[0] == 0 || product->garbage || product->accumulator->garbage) return;
    report(&block->thread[product->faulty_thread], product->faulty_where, "%s", product->fault);
}

void wgmma_overwritten(Block *block, uint32_t piece, Thread *thread, const void *where) {
    for (int i = 0; i < MOST_WARPGROUPS; i++) {
        Warpgroup *group = block->hopper->group[i];
        if (group == NULL) continue;
        for (uint32_t n = group->finished; n != group->begun; n++) {
            Product *product = group->product[n % MOST_PRODUCTS];
            if (product->arrived < WARPGROUP_THREADS) continue;
            for (int k = 0; k < product->pieces; k++) {
                if (product->piece[k] != piece) continue;
                char what[100];
                snprintf(what, sizeof what,
                         "overwrites what a product of warpgroup %d still reads (no wgmma_wait before)", i);
                note(product, thread, (void *)where, what, piece);
                if (product->computed) report_fault(block, product);
                break;
            }
        }
    }
}

// ---- a product begins -----------------------------------------------------------------------------------------------

static void look_at_operands(Thread *thread, Product *product) {
    Block *block = thread->block;
    HopperBlock *hopper = block->hopper;
    for (int i = 0; i < product->pieces; i++) {
        const uint32_t piece = product->piece[i];
        const char *which = i < product->a_pieces ? "a" : "b";
        const uint8_t *state = block->byte_state + piece * PIECE;
        char what[120];
        uint16_t writer;
        hopper->reading[piece]++;
        for (int k = 0; k < PIECE; k++) {
            if (state[k] == BYTE_WRITTEN) continue;
            if (state[k] == BYTE_UNWRITTEN) {
                product->garbage = true;
            } else if (state[k] == BYTE_IN_FLIGHT) {
                snprintf(what, sizeof what, "a product's operand %s is a copy that has not been waited for", which);
                note(product, thread, product->where, what, piece);
            } else {
                snprintf(what, sizeof what, "a product's operand %s is out of bounds", which);
                note(product, thread, product->where, what, piece);
                if (product->what.fragments > 0) report(thread, product->where, "%s", product->fault);
            }
            break;
        }
        if (hopper_unfenced(hopper, piece, &writer)) {
            snprintf(what, sizeof what,
                     "a product's operand %s is what thread %u wrote without fence_proxy_async after it", which,
                     writer);
            note(product, thread, product->where, what, piece);
        }
    }
}

static void find_operands(Thread *thread, Product *product) {
    const EmulatedWgmma *x = &product->what;
    const char *wrong = NULL, *which = "a";
    product->pieces = product->a_pieces = 0;
    if (x->a_major != EMULATED_REGISTERS) {
        wrong = operand_pieces(x->a, x->a_major == EMULATED_MN_MAJOR, PRODUCT_ROWS, product->piece);
        product->pieces = product->a_pieces = 2 * PRODUCT_ROWS;
    }
    if (wrong == NULL) {
        which = "b";
        wrong =
            operand_pieces(x->b, x->b_major == EMULATED_MN_MAJOR, x->fragments * 8, product->piece + product->pieces);
        product->pieces += 2 * x->fragments * 8;
    }
    if (wrong != NULL) report(thread, product->where, "a product's operand %s %s", which, wrong);
}

static Product *begin(Thread *thread, Warpgroup *group, uint32_t number, const EmulatedWgmma *what, void *where) {
    Product **place = &group->product[number % MOST_PRODUCTS];
    if (number - group->finished >= MOST_PRODUCTS)
        report(thread, where, "starts more than %d products without a wait", MOST_PRODUCTS);
    if (*place == NULL) *place = (Product *)malloc(sizeof **place);
    if (*place == NULL) report_host("no memory for a product");
    Product *product = *place;
    product->what = *what;
    product->accumulator = NULL;
    product->number = number;
    product->arrived = product->waited = 0;
    product->garbage = product->computed = false;
    product->where = where;
    product->fault[0] = 0;
    find_operands(thread, product);
    group->begun = number + 1;
    return product;
}

// The accumulator of this thread's array d becomes the product's.
static void hold(Thread *thread, Warpgroup *group, Product *product, uint32_t *d, void *where) {
    HopperThread *mine = &thread->block->hopper->thread[thread->number];
    for (int i = 0; i < mine->held_count; i++) {
        Held *held = &mine->held[i];
        if ((held->d == d) != (held->accumulator == product->accumulator) && product->accumulator != NULL)
            report(thread, where, "starts a product for another accumulator than other threads of the warpgroup");
        if (held->d != d) continue;
        if (held->accumulator->fragments != product->what.fragments)
            report(thread, where, "starts a product for an accumulator under way, of another width");
        product->accumulator = held->accumulator;
        held->last = product->number;
        return;
    }
    if (product->accumulator == NULL) product->accumulator = accumulator_get(group, product->what.fragments);
    if (mine->held_count == MOST_HELD) report(thread, where, "has more than %d accumulators under way", MOST_HELD);
    mine->held[mine->held_count++] = Held{product->accumulator, d, product->number};
    product->accumulator->holders++;
    take(product->accumulator, thread->number % WARPGROUP_THREADS, d, product->what.add);
}

static void take_registers(Product *product, int t, const uint32_t *a) {
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    product->a_at[t] = a;
    for (int i = 0; i < 4; i++) memcpy(&product->a[row + i % 2 * 8][column + i / 2 * 8], &a[i], 4);
}
static bool registers_changed(const Product *product, int t) {
    const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
    for (int i = 0; i < 4; i++)
        if (memcmp(&product->a[row + i % 2 * 8][column + i / 2 * 8], &product->a_at[t][i], 4) != 0) return true;
    return false;
}

void emulated_wgmma(float *d, const EmulatedWgmma &what) {
    Thread *thread = emulated_thread;
    HopperBlock *hopper = hopper_of(thread, "wgmma", CALLER);
    HopperThread *mine = &hopper->thread[thread->number];
    const int t = thread->number % WARPGROUP_THREADS;
    Warpgroup **place = &hopper->group[thread->number / WARPGROUP_THREADS];
    if (*place == NULL) *place = (Warpgroup *)calloc(1, sizeof(Warpgroup));
    if (*place == NULL) report_host("no memory for a warpgroup");
    Warpgroup *group = *place;
    if (thread->number - t + WARPGROUP_THREADS > thread->block->count)
        report(thread, CALLER, "starts a product, but the block has no whole warpgroup here");
    if (!mine->registers_fenced)
        report(thread, CALLER, "starts a product without wgmma_fence since the last wgmma_wait");
    const uint32_t number = mine->products++;
    Product *product =
        number == group->begun ? begin(thread, group, number, &what, CALLER) : group->product[number % MOST_PRODUCTS];
    const EmulatedWgmma *first = &product->what;
    if (first->fragments != what.fragments || first->add != what.add || first->a_major != what.a_major ||
        first->b_major != what.b_major || first->a != what.a || first->b != what.b)
        report(thread, CALLER,
               "starts a product of another shape or other operands than other threads of its warpgroup");
    hold(thread, group, product, (uint32_t *)d, CALLER);
    if (what.a_major == EMULATED_REGISTERS) take_registers(product, t, what.a_registers);
    if (++product->arrived < WARPGROUP_THREADS) return;
    look_at_operands(thread, product);
    block_wake(thread->block, group);
}

void emulated_wgmma_fence() {
    Thread *thread = emulated_thread;
    hopper_of(thread, "wgmma.fence", CALLER)->thread[thread->number].registers_fenced = true;
}

void emulated_wgmma_commit() {
    Thread *thread = emulated_thread;
    HopperThread *mine = &hopper_of(thread, "wgmma.commit_group", CALLER)->thread[thread->number];
    Warpgroup *group = warpgroup_of(thread);
    if (group == NULL) return;
    uint32_t *end = &group->group_end[mine->groups % MOST_GROUPS];
    if (mine->groups == group->groups) {
        group->groups++;
        *end = mine->products;
    } else if (*end != mine->products) {
        report(thread, CALLER, "closes a group after product %u, other threads of its warpgroup after %u",
               mine->products, *end);
    }
    mine->groups++;
}

// ---- a product comes to pass ----------------------------------------------------------------------------------------

static void read_operands(const Block *block, const Product *product, ProductOperands *x) {
    uint16_t value[8];
    const EmulatedWgmma *what = &product->what;
    const int columns = what->fragments * 8;
    for (int i = 0; i < product->a_pieces; i++) {
        memcpy(value, block->shared + product->piece[i] * PIECE, PIECE);
        for (int k = 0; k < 8; k++) {
            if (what->a_major == EMULATED_K_MAJOR) x->a[i / 2][i % 2 * 8 + k] = product_value(value[k]);
            else x->a[i % 8 * 8 + k][i / 8] = product_value(value[k]);
        }
    }
    if (what->a_major == EMULATED_REGISTERS) {
        for (int row = 0; row < PRODUCT_ROWS; row++)
            for (int k = 0; k < PRODUCT_K; k++) x->a[row][k] = product_value(product->a[row][k]);
    }
    const uint16_t *b = product->piece + product->a_pieces;
    for (int i = 0; i < 2 * columns; i++) {
        memcpy(value, block->shared + b[i] * PIECE, PIECE);
        if (what->b_major == EMULATED_K_MAJOR) {
            for (int k = 0; k < 8; k++) x->b[i % 2 * 8 + k][i / 2] = product_value(value[k]);
        } else {
            float *row = &x->b[i / what->fragments][i % what->fragments * 8];
            for (int k = 0; k < 8; k++) row[k] = product_value(value[k]);
        }
    }
}

// All products before `end`, all of which have begun.
static void compute(Block *block, Warpgroup *group, uint32_t end) {
    for (uint32_t n = group->computed; n != end; n++) {
        const Product *product = group->product[n % MOST_PRODUCTS];
        Accumulator *accumulator = product->accumulator;
        if (!product->what.add) accumulator->garbage = false;
        if (product->garbage) accumulator->garbage = true;
    }
    for (; group->computed != end; group->computed++) {
        Product *product = group->product[group->computed % MOST_PRODUCTS];
        Accumulator *accumulator = product->accumulator;
        const int columns = product->what.fragments * 8;
        ProductOperands x;
        product->garbage |= accumulator->garbage;
        report_fault(block, product);
        read_operands(block, product, &x);
        if (!product->what.add) memset(accumulator->sum, 0, (size_t)(PRODUCT_ROWS * columns) * sizeof(float));
        product_add(accumulator->sum, &x, columns);
        product->computed = true;
    }
}

static void explain_products(const Thread *thread, char *text, size_t size) {
    const Warpgroup *group = warpgroup_of(thread);
    const Product *product = group->product[group->computed % MOST_PRODUCTS];
    for (uint32_t n = group->computed; n != group->begun; n++) {
        product = group->product[n % MOST_PRODUCTS];
        if (product->arrived < WARPGROUP_THREADS) break;
    }
    snprintf(text, size, "for a product that only %d of the warpgroup's 128 threads have started", product->arrived);
}

// This thread has waited for all products before `end`.
static void finish(Thread *thread, Warpgroup *group, uint32_t end, void *where) {
    HopperBlock *hopper = thread->block->hopper;
    HopperThread *mine = &hopper->thread[thread->number];
    const int t = thread->number % WARPGROUP_THREADS;
    for (uint32_t n = mine->finished; n != end; n++) {
        Product *product = group->product[n % MOST_PRODUCTS];
        if (product->what.a_major == EMULATED_REGISTERS && registers_changed(product, t))
            report(thread, product->where, "changes registers that are operand a of a product before wgmma_wait");
        if (++product->waited < WARPGROUP_THREADS) continue;
        for (int i = 0; i < product->pieces; i++) hopper->reading[product->piece[i]]--;
        group->finished = n + 1;
    }
    mine->finished = end;
    for (int i = 0; i < mine->held_count;) {
        Held *held = &mine->held[i];
        Accumulator *accumulator = held->accumulator;
        if ((int32_t)(held->last - end) >= 0) { // more is under way
            i++;
            continue;
        }
        if (!is_poisoned(held->d, accumulator->fragments))
            report(thread, where, "has changed an accumulator while products under way were to change it");
        put_back(accumulator, t, held->d);
        if (--accumulator->holders == 0) {
            accumulator->next_free = group->free;
            group->free = accumulator;
        }
        *held = mine->held[--mine->held_count];
    }
}

void emulated_wgmma_wait(int pending) {
    static const Parking parking = {"wgmma_wait", 1, explain_products};
    Thread *thread = emulated_thread;
    HopperThread *mine = &hopper_of(thread, "wgmma.wait_group", CALLER)->thread[thread->number];
    Warpgroup *group = warpgroup_of(thread);
    hopper_pause(thread);
    mine->registers_fenced = false;
    if (group == NULL || mine->groups <= (uint32_t)pending) return;
    const uint32_t end = group->group_end[(mine->groups - (uint32_t)pending - 1) % MOST_GROUPS];
    if ((int32_t)(end - mine->finished) <= 0) return;
    while (group->product[(end - 1) % MOST_PRODUCTS]->arrived < WARPGROUP_THREADS)
        block_park(thread, &parking, group, 0, CALLER);
    if ((int32_t)(end - group->computed) > 0) compute(thread->block, group, end);
    finish(thread, group, end, CALLER);
    hopper_pause(thread);
}
