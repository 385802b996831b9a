// The allocator of libtorch's CPU tensors: keeps the memory of large tensors for the next ones.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

// Replaces libtorch's CPU allocator. Memory of freed large tensors is kept up to
// `max_cached` bytes. Call it once, before libtorch allocates anything.
void td_cpu_allocator_install(size_t max_cached) noexcept;

// Returns the kept memory to the system.
void td_cpu_allocator_trim() noexcept;

// Returns the bytes of kept memory.
size_t td_cpu_allocator_cached() noexcept;

// Counts the memory of large tensors that the calling thread makes from now on.
void td_cpu_allocator_count_thread() noexcept;

// Returns the bytes of counted tensors that are in use.
size_t td_cpu_allocator_counted() noexcept;

}  // extern "C"
