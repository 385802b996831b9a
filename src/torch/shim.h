// The functions of libtorch that tch lacks, behind a C ABI.
//
// Every function is noexcept: a C++ exception is returned as a message that the
// caller frees with td_message_free; NULL means success.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

typedef struct td_generator td_generator;

void td_message_free(char *message) noexcept;

// Makes a CPU generator (mt19937), seeded like torch.Generator("cpu").manual_seed.
char *td_generator_new(uint64_t seed, td_generator **out) noexcept;
void td_generator_free(td_generator *generator) noexcept;

// Draws standard normal noise of the given shape on the CPU from `generator`.
// `dtype` is a c10::ScalarType. `*out` receives a new at::Tensor* that the
// caller owns.
char *td_randn(td_generator *generator, const int64_t *sizes, size_t rank,
               int dtype, void **out) noexcept;

// Makes a tensor over memory of `owner`: contiguous, of the given shape and
// c10::ScalarType, on the CPU (`device` -1) or the CUDA device of that index.
// `release(owner)` is called once: when the last tensor over the memory is freed,
// or before this returns a message. `*out` receives a new at::Tensor* that the
// caller owns.
char *td_from_blob(void *data, const int64_t *sizes, size_t rank, int dtype,
                   int device, void *owner, void (*release)(void *),
                   void **out) noexcept;

// Reads the free and the total memory of a CUDA device, and what the caching
// allocator of this process has taken of it, in bytes.
char *td_cuda_memory(int index, size_t *free, size_t *total,
                     size_t *reserved) noexcept;

// Returns whether libtorch's CUDA library is registered in this process.
bool td_cuda_is_linked() noexcept;

// Reads how often the allocator of a CUDA device was out of memory.
char *td_cuda_out_of_memory_count(int index, int64_t *count) noexcept;

// Returns an address in libtorch_cpu.so.
const void *td_libtorch_address() noexcept;

// Makes `index` the calling thread's current CUDA device.
char *td_cuda_set_device(int index) noexcept;

// Frees the unused blocks of the CUDA caching allocator.
char *td_cuda_empty_cache() noexcept;

// Makes an unwritten, contiguous tensor of bytes in pinned host memory.
// `*out` receives a new at::Tensor* that the caller owns.
char *td_pinned_empty(size_t bytes, void **out) noexcept;

// Returns the number of a stream from libtorch's pool for the CUDA device
// `index`. It does not wait for the default stream, nor the reverse.
char *td_stream_new(int index, int64_t *stream) noexcept;

// Makes the stream current on the calling thread: operators of the device
// queue their work there. The device must be current, too.
char *td_stream_make_current(int index, int64_t stream) noexcept;

// Waits for all work on the stream.
char *td_stream_synchronize(int index, int64_t stream) noexcept;

// Records the work that is queued on the stream. `*event` is NULL or an event
// that was recorded before; it receives the event, which the caller owns.
char *td_event_record(void **event, int index, int64_t stream) noexcept;

// Waits for the work that was queued when the event was recorded.
char *td_event_synchronize(void *event) noexcept;
void td_event_free(void *event, int index) noexcept;

// Copies the tensor `from` to the tensor `to` (both at::Tensor*) on `stream`,
// without waiting if the one on the host is pinned.
char *td_copy_non_blocking(void *to, const void *from, int index,
                           int64_t stream) noexcept;

// Makes an unwritten, contiguous tensor on the CUDA device `index`, in memory
// of `stream`. `*out` receives a new at::Tensor* that the caller owns.
char *td_cuda_empty(const int64_t *sizes, size_t rank, int dtype, int index,
                    int64_t stream, void **out) noexcept;

}  // extern "C"
