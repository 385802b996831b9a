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

// Reads the free and the total memory of a CUDA device, in bytes.
char *td_cuda_memory(int index, size_t *free, size_t *total) noexcept;

// Returns whether libtorch's CUDA library is registered in this process.
bool td_cuda_is_linked() noexcept;

// Makes `index` the calling thread's current CUDA device.
char *td_cuda_set_device(int index) noexcept;

// Frees the unused blocks of the CUDA caching allocator.
char *td_cuda_empty_cache() noexcept;

// Makes an unwritten, contiguous tensor in pinned host memory.
char *td_pinned_empty(const int64_t *sizes, size_t rank, int dtype,
                      void **out) noexcept;

// Frees unused pinned memory.
char *td_pinned_empty_cache() noexcept;

// Returns the number of a stream from libtorch's pool for the CUDA device `index`.
char *td_copy_stream(int index, int64_t *stream) noexcept;

// Copies the tensor `host` (an at::Tensor*) to the device on `stream`, without
// waiting if `host` is pinned. After the stream is synchronized, the default
// stream may use and free the copy. `*out` receives a
// new at::Tensor* that the caller owns.
char *td_upload(const void *host, int index, int64_t stream,
                void **out) noexcept;

// Waits for all work on the stream.
char *td_stream_synchronize(int index, int64_t stream) noexcept;

}  // extern "C"
