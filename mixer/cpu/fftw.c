// FFTW's float library (Frigo and Johnson 2005), opened when it is first wanted and not linked with, as CBLAS libraries
// are (layers/cpu/cblas.c). Its planner is one for the whole process and not safe among threads, hence the lock; what a
// plan does is. FFTW_ESTIMATE: a plan that is chosen by rules and not by clock, so its bits are the same every time.
#include "mixer/cpu/fftw.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

// As fftw3.h has them.
typedef struct fftwf_plan_s *Plan;
typedef Plan PlanForward(int n, float *in, float (*out)[2], unsigned flags);
typedef Plan PlanBackward(int n, float (*in)[2], float *out, unsigned flags);
typedef void ExecuteForward(Plan plan, float *in, float (*out)[2]);
typedef void ExecuteBackward(Plan plan, float (*in)[2], float *out);
enum { FFTW_ESTIMATE = 1 << 6 };

struct RealTransform {
    int64_t N;
    Plan forward, backward;
    RealTransform *next;
};

static struct {
    PlanForward *plan_forward;
    PlanBackward *plan_backward;
    ExecuteForward *forward;
    ExecuteBackward *backward;
} fftw;
static char missing[200] = "this program was built without it";

static void open_library(void) {
#ifdef HAVE_FFTW
    void *handle = dlopen("libfftw3f.so.3", RTLD_NOW | RTLD_LOCAL);
    if (handle != NULL) {
        fftw.plan_forward = (PlanForward *)dlsym(handle, "fftwf_plan_dft_r2c_1d");
        fftw.plan_backward = (PlanBackward *)dlsym(handle, "fftwf_plan_dft_c2r_1d");
        fftw.forward = (ExecuteForward *)dlsym(handle, "fftwf_execute_dft_r2c");
        fftw.backward = (ExecuteBackward *)dlsym(handle, "fftwf_execute_dft_c2r");
    }
    bool whole = fftw.plan_forward && fftw.plan_backward && fftw.forward && fftw.backward;
    const char *why = whole ? NULL : dlerror();
    snprintf(missing, sizeof missing, "%s", whole ? "" : why != NULL ? why : "it lacks functions");
#endif
}

bool fftw_opens(const char *option, Error *err) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, open_library); // fails only where `once` is no such thing
    if (*missing == '\0') return true;
    return error_usage(err,
                       "%s: its convolutions are done by FFTW, whose library libfftw3f.so.3 cannot be opened (%s): "
                       "install it (Debian: libfftw3-single3), or take another mixer",
                       option, missing);
}

static RealTransform *make_transform(int64_t N, float *row) {
    RealTransform *made = malloc(sizeof *made);
    Error err;
    if (made == NULL) die((error_set(&err, "out of memory for a transform of %lld values", (long long)N), &err));
    float(*complex_row)[2] = (float(*)[2])(void *)row;
    *made = (RealTransform){.N = N,
                            .forward = fftw.plan_forward((int)N, row, complex_row, FFTW_ESTIMATE),
                            .backward = fftw.plan_backward((int)N, complex_row, row, FFTW_ESTIMATE)};
    if (made->forward == NULL || made->backward == NULL)
        die((error_set(&err, "FFTW has no transform of %lld values", (long long)N), &err));
    return made;
}

const RealTransform *fftw_transform(int64_t N, float *row) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static RealTransform *all; // as many as there are lengths of context
    pthread_mutex_lock(&lock);
    RealTransform *found = all;
    while (found != NULL && found->N != N) found = found->next;
    if (found == NULL) {
        found = make_transform(N, row);
        found->next = all;
        all = found;
    }
    pthread_mutex_unlock(&lock);
    return found;
}

void fftw_forward(const RealTransform *t, float *row) { fftw.forward(t->forward, row, (float(*)[2])(void *)row); }
void fftw_backward(const RealTransform *t, float *row) { fftw.backward(t->backward, (float(*)[2])(void *)row, row); }
