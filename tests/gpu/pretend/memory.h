// The memory of the pretend device: the host's memory, under an account for each allocation.
#pragma once

#include <cstddef>

#include "control.h"

namespace pretend {

// Work number `work` of `stream` reads the allocation that begins at `base`. Logs a RACE if the stream does not know
// that the last write was done.
void reads(void *base, StreamKey stream, uint64_t work, const char *who);
// Work number `work` of `stream` writes the allocation that begins at `base`.
void writes(void *base, StreamKey stream, uint64_t work);

// Returns whether an address is in pinned memory.
bool is_pinned(const void *address);
// A stream copies from or to pinned memory.
void uses_pinned(const void *address);

}  // namespace pretend
