// Bodies of test/cuda_device.h.
#include "test/cuda_device.h"

#include "test/program.h"

const char *cuda_device_name(void) {
    const char *name = getenv("TEST_DEVICE");
    return name != NULL && name[0] != '\0' ? name : "emulated";
}

DeviceKind cuda_device_kind(void) { return device_kind(cuda_device_name()); }
bool cuda_device_is_gpu(void) { return cuda_device_kind() == DEVICE_CUDA; }

int cuda_devices_here(void) {
    const char *why = "";
    int count = device_count(cuda_device_kind(), &why);
    if (count == 0) print_message("skipped: no device \"%s\": %s\n", cuda_device_name(), why);
    return count;
}

bool only_emulated(void) {
    if (!cuda_device_is_gpu()) return cuda_devices_here() > 0;
    print_message("skipped: on the emulated device only\n");
    return false;
}
