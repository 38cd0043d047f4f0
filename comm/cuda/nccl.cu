// NCCL, as the table of comm/collectives.h. What is done with it is in comm/collectives.c.
#include "comm/collectives.h"

#include <nccl.h>
#include <stdlib.h>
#include <string.h>

#include "layers/cuda/context.h"
#include "layers/cuda/libraries.h"

namespace {

struct Member {
    ncclComm_t comm;
    cudaStream_t stream; // of STREAM_EXCHANGE
    int rank;
};

// NCCL's own line about the last error is better than the name of its code, where it has one.
bool failed(ncclComm_t comm, ncclResult_t result, Error *err) {
    const char *detail = ncclGetLastError(comm);
    if (detail == NULL || *detail == '\0')
        return error_set(err, "NCCL: %s (NCCL_DEBUG=WARN in the environment says more)", ncclGetErrorString(result));
    char line[700]; // it may have several
    size_t length = strnlen(detail, sizeof line - 1);
    for (size_t i = 0; i < length; i++) line[i] = detail[i] == '\n' ? ' ' : detail[i];
    while (length > 0 && line[length - 1] == ' ') length--;
    line[length] = '\0';
    return error_set(err, "NCCL: %s: %s", ncclGetErrorString(result), line);
}

// ncclInProgress does not come from communicators that block, as these do.
bool done(ncclComm_t comm, ncclResult_t result, Error *err) {
    return result == ncclSuccess || failed(comm, result, err);
}

bool unique_id(CommUniqueId *made, Error *err) {
    static_assert(sizeof(ncclUniqueId) == sizeof(CommUniqueId), "it is NCCL's");
    ncclUniqueId id;
    if (!done(NULL, ncclGetUniqueId(&id), err)) return false;
    memcpy(made->bytes, &id, sizeof id);
    return true;
}

// NCCL makes the same id of NCCL_COMM_ID in every process, but for its first 8 bytes, by which strangers are told apart:
// before version 2.23 or so these were random even then, and ranks did not know each other. They are the address's here.
bool unique_id_of(const char *address, CommUniqueId *id, Error *err) {
    uint64_t hash = 0xcbf29ce484222325; // FNV-1a
    for (const char *c = address; *c != '\0'; c++) hash = (hash ^ static_cast<unsigned char>(*c)) * 0x100000001b3;
    if (!unique_id(id, err)) return false;
    memcpy(id->bytes, &hash, sizeof hash);
    return true;
}

void *join(Device *device, const CommUniqueId *shared, int rank, int size, Error *err) {
    Member *member = static_cast<Member *>(calloc(1, sizeof(Member)));
    if (member == NULL) {
        error_set(err, "out of memory");
        return NULL;
    }
    ncclUniqueId id;
    memcpy(&id, shared->bytes, sizeof id);
    CUDA_CHECK(cudaSetDevice(context_of(device)->gpu));
    member->stream = context_of(device)->stream[STREAM_EXCHANGE];
    member->rank = rank;
    if (size > 1) context_of(device)->nccl_works_beside = true;
    if (done(NULL, ncclCommInitRank(&member->comm, size, id, rank), err)) return member;
    free(member);
    return NULL;
}

void leave(void *pointer) {
    Member *member = static_cast<Member *>(pointer);
    ncclCommDestroy(member->comm);
    free(member);
}

bool begin(Error *err) { return done(NULL, ncclGroupStart(), err); }
bool end(void *member, Error *err) { return done(static_cast<Member *>(member)->comm, ncclGroupEnd(), err); }

bool send(void *pointer, const void *data, size_t bytes, int to, Error *err) {
    const Member *m = static_cast<Member *>(pointer);
    return done(m->comm, ncclSend(data, bytes, ncclUint8, to, m->comm, m->stream), err);
}

bool receive(void *pointer, void *data, size_t bytes, int from, Error *err) {
    const Member *m = static_cast<Member *>(pointer);
    return done(m->comm, ncclRecv(data, bytes, ncclUint8, from, m->comm, m->stream), err);
}

bool all_gather(void *pointer, void *data, size_t bytes_each, Error *err) {
    const Member *m = static_cast<Member *>(pointer);
    const unsigned char *mine = static_cast<unsigned char *>(data) + (size_t)m->rank * bytes_each;
    return done(m->comm, ncclAllGather(mine, data, bytes_each, ncclUint8, m->comm, m->stream), err);
}

void watch_thread(Device *device) { CUDA_CHECK(cudaSetDevice(context_of(device)->gpu)); }

bool sound(void *pointer, Error *err) {
    const Member *m = static_cast<Member *>(pointer);
    ncclResult_t asynchronous = ncclSuccess;
    if (!done(m->comm, ncclCommGetAsyncError(m->comm, &asynchronous), err)) return false;
    return asynchronous == ncclInProgress || done(m->comm, asynchronous, err);
}

} // namespace

const CommCollectives cuda_nccl_collectives = {
    nccl_opens, unique_id, unique_id_of, join, leave, begin, end, send, receive, all_gather, watch_thread, sound,
};
