// Who listens to this thread's signs of life.
#include "base/pulse.h"

#include <stddef.h>

static _Thread_local void (*beat_of_thread)(void *) = NULL;
static _Thread_local void *listener_of_thread = NULL;

void pulse_connect(void (*beat)(void *listener), void *listener) {
    beat_of_thread = beat;
    listener_of_thread = listener;
}

void pulse_beat(void) {
    if (beat_of_thread != NULL) beat_of_thread(listener_of_thread);
}
