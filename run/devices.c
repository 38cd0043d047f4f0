// Chooses, opens and measures the devices of this process, and adds up their memory.
#include "run/devices.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu_features.h"
#include "comm/comm.h"
#include "terminal/report.h"

static bool on_processors(const Devices *devices) { return devices->kind == DEVICE_CPU; }
static bool emulated(const Devices *devices) { return devices->kind == DEVICE_EMULATED; }

// ---- which GPU serves which rank ------------------------------------------------------------------------------------

// The numbers in --devices, at most `most`; returns how many, or -1 where it is no list of numbers.
static int read_list(const char *text, int *list, int most) {
    int count = 0;
    for (;;) {
        char *end;
        if (*text < '0' || *text > '9' || count == most) return -1;
        long value = strtol(text, &end, 10);
        if (value > 65535 || (*end != ',' && *end != '\0')) return -1;
        list[count++] = (int)value;
        if (*end == '\0') return count;
        text = end + 1;
    }
}

static bool check_list(const int *list, int count, int needed, int gpus, const char *text, Error *err) {
    if (count < 0)
        return error_usage(err, "--devices %s: give the number of a GPU for each rank, such as 0,1,2,3", text);
    if (count != needed)
        return error_usage(err,
                           "--devices %s names %d GPUs for %d ranks of this %s: give one for each (ranks may share)",
                           text, count, needed, comm_processes_here() > 1 ? "machine" : "process");
    for (int i = 0; i < count; i++)
        if (list[i] >= gpus)
            return error_usage(err, "--devices %s: there is no GPU %d; this machine has %d, counted from 0", text,
                               list[i], gpus);
    return true;
}

// Which of this machine's `gpus` GPUs each of its ranks has; keeps those of this process. Processes may each be shown
// one GPU of their own (srun --gpus-per-task), all of them numbered 0: so only a list says that two share one, which
// NCCL would refuse anyhow.
static bool assign(Devices *devices, const Options *o, int gpus, bool processes, Error *err) {
    int ranks_here = processes ? comm_processes_here() : devices->ranks,
        place = processes ? comm_process_rank_here() : 0;
    int list[DEVICES_MOST_RANKS], all[DEVICES_MOST_RANKS];
    if (ranks_here > DEVICES_MOST_RANKS || place >= ranks_here)
        return error_usage(err, "%d ranks on one machine: at most %d are served", ranks_here, DEVICES_MOST_RANKS);
    if (o->devices != NULL) {
        int count = read_list(o->devices, list, DEVICES_MOST_RANKS);
        if (!check_list(list, count, ranks_here, gpus, o->devices, err)) return false;
    } else if (ranks_here > gpus && !processes) {
        return error_usage(
            err,
            "--sp %lld x --dp %lld: %d ranks, but this machine has %d %s; start fewer, or let them share: "
            "--devices 0,0,... with one number for each rank",
            (long long)o->sp, (long long)o->dp, ranks_here, gpus, gpus == 1 ? "GPU" : "GPUs");
    }
    for (int i = 0; i < ranks_here; i++) all[i] = o->devices != NULL ? list[i] : i % gpus;
    for (int i = 0; i < ranks_here; i++)
        for (int j = 0; j < i; j++)
            if (all[i] == all[j] && (!processes || (o->devices != NULL && (i == place || j == place))))
                devices->shared = true;
    for (int i = 0; i < devices->ranks; i++) devices->index[i] = all[place + i];
    return true;
}

// Whoever goes through the GPUs goes through the ranks, and takes those for which this is true.
static bool first_on_its_gpu(const Devices *devices, int rank) {
    for (int i = 0; i < rank; i++)
        if (devices->index[i] == devices->index[rank]) return false;
    return true;
}

int64_t devices_usual_ranks(const Options *o) {
    int list[DEVICES_MOST_RANKS];
    const char *why;
    int64_t gpus = INT_MAX;
    if (o->devices != NULL) gpus = read_list(o->devices, list, DEVICES_MOST_RANKS);
    else if (o->device == DEVICE_AUTO || o->device == DEVICE_CUDA) gpus = device_count(DEVICE_CUDA, &why);
    if (gpus < o->dp) return gpus < 1 ? o->sp : 1; // none, or too few: said later
    return o->devices != NULL || gpus / o->dp < o->sp ? gpus / o->dp : o->sp;
}

// ---- choosing -------------------------------------------------------------------------------------------------------

// Opens each GPU for a moment, before anything else is done: what cannot be used is told at once.
static bool look_at_all(Devices *devices, Error *err) {
    for (int rank = devices->ranks - 1; rank >= 0; rank--) { // rank 0's is the one described
        Device device;
        if (!first_on_its_gpu(devices, rank)) continue;
        if (!devices_open(devices, rank, 1, &device, err)) return false;
        memcpy(devices->description, device.description, sizeof devices->description);
        devices->element_bytes = device.element_bytes;
        devices->kernels = device.attention;
        devices->mixers = device.mixers;
        devices->memory[rank] = (double)device.memory_available(&device);
        device.close(&device);
    }
    return true;
}

bool devices_choose(Devices *devices, const Options *options, int ranks, bool processes, Error *err) {
    const char *why = "";
    DeviceKind kind = options->device;
    if (kind == DEVICE_AUTO) kind = device_count(DEVICE_CUDA, &why) > 0 ? DEVICE_CUDA : DEVICE_CPU;
    *devices = (Devices){.kind = kind, .ranks = ranks, .at_hand = true};
    if (on_processors(devices)) {
        if (options->tune != NULL)
            return error_usage(err,
                               "--tune chooses among a GPU's matrix products, but --device %s computes on "
                               "processors here%s%s%s",
                               options->device == DEVICE_AUTO ? "auto" : "cpu", *why ? " (" : "", why, *why ? ")" : "");
        if (options->devices != NULL)
            return error_usage(err, "--devices chooses GPUs, but --device %s computes on processors here%s%s%s",
                               options->device == DEVICE_AUTO ? "auto" : "cpu", *why ? " (" : "", why, *why ? ")" : "");
    } else {
        int gpus = device_count(kind, &why);
        devices->at_hand = gpus > 0;
        if (!devices->at_hand && !(options->plan && kind == DEVICE_CUDA))
            return error_usage(err, "--device %s: %s; use --device cpu", device_kind_name(kind), why);
        if (emulated(devices) && processes && options->sp * options->dp > 1)
            return error_usage(err,
                               "--device emulated: its ranks can only be threads of one process; use --engine local");
        if (!assign(devices, options, devices->at_hand ? gpus : INT_MAX, processes, err)) return false;
    }
    for (int i = 0; i < ranks; i++) devices->distinct += first_on_its_gpu(devices, i);
    if (!devices->at_hand) {
        Device elsewhere;
        device_elsewhere(&elsewhere);
        devices->element_bytes = elsewhere.element_bytes;
        devices->kernels = elsewhere.attention;
        devices->mixers = elsewhere.mixers;
        return true;
    }
    return look_at_all(devices, err);
}

bool devices_open(const Devices *devices, int rank, int threads, Device *device, Error *err) {
    return device_open(device, devices->kind, devices->index[rank], threads, err);
}

// MATRIX_RATE in the environment, for runs that are too short to measure first, or whose neighbours disturb it.
static bool read_rate(const char *text, double *rate, Error *err) {
    char *end;
    *rate = strtod(text, &end);
    if (end != text && *end == '\0' && *rate > 0 && isfinite(*rate)) return true;
    return error_usage(
        err, "MATRIX_RATE=%s in the environment: give operations per second, such as 3.2e11, or leave it out", text);
}

bool devices_measure(Devices *devices, int threads, Error *err) {
    const char *given = getenv("MATRIX_RATE");
    if (emulated(devices)) return true;
    devices->rate_given = given != NULL && *given != '\0';
    if (devices->rate_given) return read_rate(given, &devices->matrix_rate, err);
    for (int rank = 0; rank < devices->ranks; rank++) {
        if (!first_on_its_gpu(devices, rank)) continue;
        Device device;
        if (!devices_open(devices, rank, threads, &device, err)) return false;
        devices->matrix_rate += device.matrix_rate(&device);
        device.close(&device);
    }
    return true;
}

// ---- memory ---------------------------------------------------------------------------------------------------------

DevicesNeed devices_need(const Devices *devices, const size_t *rank_bytes, size_t extra) {
    // An emulated GPU's memory is the machine's own: all of them together have what one has.
    bool together = on_processors(devices) || emulated(devices);
    int processes = on_processors(devices) || devices->shared ? comm_processes_here() : 1; // that share it
    DevicesNeed tightest = {-1, 0, -1};
    for (int rank = 0; rank < devices->ranks; rank++) {
        if (!first_on_its_gpu(devices, rank) || (together && rank > 0)) continue;
        DevicesNeed here = {together ? -1 : devices->index[rank], rank == 0 ? (double)extra : 0, -1};
        if (devices->at_hand) here.have = devices->memory[rank] / processes;
        for (int other = 0; other < devices->ranks; other++)
            if (together || devices->index[other] == devices->index[rank]) here.need += (double)rank_bytes[other];
        if (rank == 0 || here.need - here.have > tightest.need - tightest.have) tightest = here;
    }
    return tightest;
}

bool devices_too_small(const DevicesNeed *tightest, int64_t sample_tokens, Error *err) {
    char need[32], have[32], where[32] = "";
    format_bytes(need, tightest->need);
    format_bytes(have, tightest->have);
    if (tightest->gpu >= 0) snprintf(where, sizeof where, " on GPU %d", tightest->gpu);
    return error_set(
        err,
        "out of memory: this needs %s%s (plan above; %lld tokens of sample included) and %s is free; lower "
        "--context, --micro-batch, --sample-tokens or the model's sizes",
        need, where, (long long)sample_tokens, have);
}
