// The pretend device as libtorch sees it.
#pragma once

#include <c10/core/Allocator.h>

#include "control.h"

namespace pretend {

// The calling thread's current device, and its current stream on that device.
int current_device();
StreamKey current_stream();

c10::Allocator *device_allocator();
c10::Allocator *pinned_allocator();

}  // namespace pretend
