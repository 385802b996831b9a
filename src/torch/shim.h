// What tch lacks of libtorch, behind a C ABI.
//
// Every function is noexcept: a C++ exception becomes a message that the caller
// frees with td_message_free; NULL means success.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

typedef struct td_generator td_generator;

void td_message_free(char *message) noexcept;

// A new CPU generator (mt19937) seeded as torch.Generator("cpu").manual_seed does.
char *td_generator_new(uint64_t seed, td_generator **out) noexcept;
void td_generator_free(td_generator *generator) noexcept;

// Standard normal noise of the given shape, drawn on the CPU from `generator`.
// `dtype` is a c10::ScalarType. `*out` receives a new at::Tensor* that the
// caller owns.
char *td_randn(td_generator *generator, const int64_t *sizes, size_t rank,
               int dtype, void **out) noexcept;

// A tensor over memory that `owner` keeps: contiguous, of the given shape and
// c10::ScalarType, on the CPU (`device` -1) or the CUDA device of that index.
// `release(owner)` is called once: when the last tensor over the memory is gone,
// or before this returns a message. `*out` receives a new at::Tensor* that the
// caller owns.
char *td_from_blob(void *data, const int64_t *sizes, size_t rank, int dtype,
                int device, void *owner, void (*release)(void *),
                void **out) noexcept;

// Free and total memory of a CUDA device, in bytes.
char *td_cuda_memory(int index, size_t *free, size_t *total) noexcept;

// True once libtorch's CUDA library is in the process and has registered itself.
bool td_cuda_is_linked() noexcept;

// Makes `index` the calling thread's current CUDA device.
char *td_cuda_set_device(int index) noexcept;

// Gives the CUDA caching allocator's unused blocks back to the driver.
char *td_cuda_empty_cache() noexcept;

// An unwritten, contiguous tensor in pinned host memory, for CUDA.
char *td_pinned_empty(const int64_t *sizes, size_t rank, int dtype,
                      void **out) noexcept;

// Gives pinned memory that nothing uses back to the system.
char *td_pinned_empty_cache() noexcept;

// The number of a stream of libtorch's pool for the CUDA device `index`.
char *td_copy_stream(int index, int64_t *stream) noexcept;

// A copy of the tensor `host` (an at::Tensor*) on the device, made on `stream`
// without waiting if `host` is pinned. The copy may be used, and freed, by what
// runs on the default stream once the stream was synchronized. `*out` receives a
// new at::Tensor* that the caller owns.
char *td_upload(const void *host, int index, int64_t stream,
                void **out) noexcept;

// Waits for all that was put on the stream.
char *td_stream_synchronize(int index, int64_t stream) noexcept;

}  // extern "C"
