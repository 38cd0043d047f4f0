// Device memory: allocated with guards around it, and every access checked against them.
#include "emulated/memory.h"

#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "emulated/report.h"
#include "emulated/settings.h"
#include "emulated/use.h"

enum : uintptr_t { PAGE = 4096, MOST_SPACE = (uintptr_t)16 << 40, ALIGNMENT = 256, GAP = 64 << 10 };

struct Allocation {
    uintptr_t begin, bytes, pages, pages_bytes;
    int device;
    bool freed;
};

static pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
static uintptr_t space, space_bytes; // the addresses set aside
static uintptr_t cursor;             // from here on none has been used
static Allocation *table;            // ordered by address, since addresses only grow
static size_t table_count, table_capacity;
static size_t total_bytes, used_bytes;
static EmulatedUse use;
static size_t device_bytes; // of used_bytes, those of GPUs
static uint64_t peers[64]; // bit p of [d]: device d may use the memory of p

__thread RecentMemory recent_memory;

void memory_forget_recent() { memset(&recent_memory, 0, sizeof recent_memory); }

// ---- how much there is ----------------------------------------------------------------------------------------------

static size_t host_available() {
    char line[200];
    unsigned long long kibibytes = 0;
    FILE *file = fopen("/proc/meminfo", "r");
    if (file == NULL) return (size_t)4 << 30;
    while (fgets(line, sizeof line, file) != NULL && sscanf(line, "MemAvailable: %llu", &kibibytes) != 1) {
    }
    fclose(file);
    return (size_t)kibibytes << 10;
}

void memory_info(size_t *available, size_t *total) {
    const size_t now = host_available();
    pthread_rwlock_wrlock(&lock);
    if (total_bytes == 0) total_bytes = now;
    const size_t rest = total_bytes > used_bytes ? total_bytes - used_bytes : 0;
    *available = rest < now ? rest : now;
    *total = total_bytes;
    pthread_rwlock_unlock(&lock);
}

// The lock is held.
static void count_use(int64_t more) {
    device_bytes += (size_t)more;
    use.calls++;
    if (use.peak < (int64_t)device_bytes) use.peak = (int64_t)device_bytes;
}

EmulatedUse emulated_use() {
    pthread_rwlock_rdlock(&lock);
    const EmulatedUse now = use;
    pthread_rwlock_unlock(&lock);
    return now;
}

// ---- allocations ----------------------------------------------------------------------------------------------------

static bool make_room() {
    if (space == 0) {
        void *memory = MAP_FAILED; // sanitizers leave less room than others
        for (space_bytes = 2 * MOST_SPACE; memory == MAP_FAILED && space_bytes > 1 << 30;) {
            space_bytes /= 2;
            memory = mmap(NULL, space_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        }
        if (memory == MAP_FAILED) return false;
        space = cursor = (uintptr_t)memory;
    }
    if (table_count == table_capacity) {
        const size_t capacity = table_capacity ? 2 * table_capacity : 256;
        Allocation *larger = (Allocation *)realloc(table, capacity * sizeof *table);
        if (larger == NULL) return false;
        table = larger;
        table_capacity = capacity;
    }
    return true;
}

// Makes pages readable and writable, full of 0xff. Large ones show a file of 0xff until they are written, so that what
// a program never touches (a library's workspace) costs nothing. The lock is held.
static bool open_pages(uintptr_t pages, size_t bytes) {
    enum : size_t { FILE_BYTES = 4 << 20, LARGE = 1 << 20 };
    static int file = -1;
    if (file == -1 && bytes >= LARGE) {
        file = memfd_create("emulated GPU", MFD_CLOEXEC);
        void *content = file >= 0 && ftruncate(file, FILE_BYTES) == 0
                            ? mmap(NULL, FILE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0)
                            : MAP_FAILED;
        if (content != MAP_FAILED) {
            memset(content, 0xff, FILE_BYTES);
            munmap(content, FILE_BYTES);
        } else {
            file = -2;
        }
    }
    if (file < 0 || bytes < LARGE) {
        if (mprotect((void *)pages, bytes, PROT_READ | PROT_WRITE) != 0) return false;
        memset((void *)pages, 0xff, bytes);
        return true;
    }
    for (size_t done = 0; done < bytes; done += FILE_BYTES) {
        const size_t part = bytes - done < FILE_BYTES ? bytes - done : FILE_BYTES;
        if (mmap((void *)(pages + done), part, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED, file,
                 0) == MAP_FAILED)
            return false;
    }
    return true;
}

void *memory_allocate(size_t bytes, int device) {
    size_t available, total;
    if (total_bytes == 0 || bytes > 1 << 20) { // to ask takes a while
        memory_info(&available, &total);
        if (bytes > available) return NULL;
    }
    pthread_rwlock_wrlock(&lock);
    // The end of the allocation stands as near to the end of its last page as its alignment allows.
    const uintptr_t pages_bytes = (bytes + PAGE - 1) / PAGE * PAGE;
    void *result = NULL;
    if (make_room() && pages_bytes + GAP <= space + space_bytes - cursor && open_pages(cursor, pages_bytes)) {
        Allocation *mine = &table[table_count++];
        *mine = Allocation{
            cursor + (pages_bytes - bytes) / ALIGNMENT * ALIGNMENT, bytes, cursor, pages_bytes, device, false};
        cursor += pages_bytes + GAP;
        used_bytes += pages_bytes;
        count_use(device == PINNED ? 0 : (int64_t)pages_bytes);
        result = (void *)mine->begin;
    }
    pthread_rwlock_unlock(&lock);
    return result;
}

// The last allocation that begins at or before the address, or the first of all. The lock is held.
static Allocation *nearest(uintptr_t address) {
    if (table_count == 0 || address < space || address >= space + space_bytes) return NULL;
    size_t low = 0, high = table_count;
    while (high - low > 1) {
        const size_t middle = (low + high) / 2;
        if (table[middle].begin <= address) low = middle;
        else high = middle;
    }
    return &table[low];
}

bool memory_free(void *memory, bool pinned) {
    pthread_rwlock_wrlock(&lock);
    Allocation *found = nearest((uintptr_t)memory);
    const bool right =
        found != NULL && found->begin == (uintptr_t)memory && !found->freed && (found->device == PINNED) == pinned;
    if (right) {
        found->freed = true;
        used_bytes -= found->pages_bytes;
        count_use(pinned ? 0 : -(int64_t)found->pages_bytes);
        // Back to the system, and unreadable from now on.
        mmap((void *)found->pages, found->pages_bytes, PROT_NONE,
             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    }
    pthread_rwlock_unlock(&lock);
    return right;
}

bool memory_owner(const void *address, int *device, size_t *rest) {
    pthread_rwlock_rdlock(&lock);
    const Allocation *found = nearest((uintptr_t)address);
    const bool inside =
        found != NULL && !found->freed && (uintptr_t)address - found->begin < (found->bytes ? found->bytes : 1);
    if (inside) {
        *device = found->device;
        *rest = found->begin + found->bytes - (uintptr_t)address;
    }
    pthread_rwlock_unlock(&lock);
    return inside;
}

bool memory_enable_peer(int device, int peer) {
    const uint64_t bit = (uint64_t)1 << peer;
    return (__atomic_fetch_or(&peers[device], bit, __ATOMIC_SEQ_CST) & bit) == 0;
}

// ---- for kernels ----------------------------------------------------------------------------------------------------

// Constants of the program (which a GPU would have in its own constant memory) may be read: the parts of the program
// that nobody can write, and the section of __constant__ variables.
extern char constants_begin[] __asm__("__start_emulated_constant") __attribute__((weak));
extern char constants_end[] __asm__("__stop_emulated_constant") __attribute__((weak));

static int in_read_only_segment(struct dl_phdr_info *info, size_t, void *address) {
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type == PT_LOAD && !(segment->p_flags & PF_W) &&
            (uintptr_t)address - (info->dlpi_addr + segment->p_vaddr) < segment->p_memsz)
            return 1;
    }
    return 0;
}

MemoryState memory_find(const void *address, size_t bytes, int device, bool write) {
    if (!write && (const char *)address >= constants_begin && (const char *)address < constants_end)
        return MEMORY_FOUND;
    MemoryState state = MEMORY_OF_HOST;
    pthread_rwlock_rdlock(&lock);
    const Allocation *found = nearest((uintptr_t)address);
    if (found != NULL) {
        const uintptr_t offset = (uintptr_t)address - found->begin;
        if (offset >= found->bytes || bytes > found->bytes - offset) {
            state = MEMORY_OUTSIDE;
        } else if (found->freed) {
            state = MEMORY_FREED;
        } else if (found->device != PINNED && found->device != device && !(peers[device] >> found->device & 1)) {
            state = MEMORY_OF_PEER;
        } else {
            state = MEMORY_FOUND;
            const unsigned slot = recent_memory.next++ % RECENT;
            recent_memory.begin[slot] = found->begin;
            recent_memory.bytes[slot] = found->bytes;
        }
    }
    pthread_rwlock_unlock(&lock);
    if (state == MEMORY_OF_HOST && !write && dl_iterate_phdr(in_read_only_segment, (void *)address))
        return MEMORY_FOUND;
    return state;
}

void memory_describe(const void *address, char *text, size_t size) {
    pthread_rwlock_rdlock(&lock);
    const Allocation *found = nearest((uintptr_t)address);
    // What lies before an allocation's begin, on its own pages or right before them, is rather its than the one before.
    if (found != NULL && found + 1 < table + table_count && (uintptr_t)address >= found->begin + found->bytes &&
        found[1].begin - (uintptr_t)address < (uintptr_t)address - (found->begin + found->bytes))
        found++;
    if (found == NULL) {
        snprintf(text, size, "address %p", address);
    } else {
        char owner[40] = "pinned host memory";
        if (found->device != PINNED) snprintf(owner, sizeof owner, "GPU %d", found->device);
        snprintf(text, size, "allocation of %zu bytes on %s at offset %ld", (size_t)found->bytes, owner,
                 (long)((uintptr_t)address - found->begin));
    }
    pthread_rwlock_unlock(&lock);
}
