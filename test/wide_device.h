// A CPU device whose storage is double, so that code which takes storage for fp32 is found out before there is a device
// of 2-byte storage. It only stores: what is written is rounded to fp32, and the reference kernel works on fp32 copies.
// So its results must be, to the bit, those of the reference kernel on fp32 storage.
#ifndef TEST_WIDE_DEVICE_H
#define TEST_WIDE_DEVICE_H

#include "attention_problem.h"

void wide_device(Device *device, int rank);

#endif
