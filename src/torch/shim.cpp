#include "shim.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <ATen/core/CachingHostAllocator.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/randn.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <tuple>
#include <utility>

struct td_generator {
  at::Generator inner;
};

namespace {

char *copy_message(const char *text) noexcept {
  char *message = static_cast<char *>(std::malloc(std::strlen(text) + 1));
  // Without memory for the message the process cannot say anything useful.
  if (message == nullptr) std::abort();
  std::strcpy(message, text);
  return message;
}

// Runs `body` and returns an exception as a message.
template <typename Body>
char *guarded(Body &&body) noexcept {
  try {
    std::forward<Body>(body)();
    return nullptr;
  } catch (const c10::Error &error) {
    return copy_message(error.what_without_backtrace());
  } catch (const std::exception &error) {
    return copy_message(error.what());
  } catch (...) {
    return copy_message("libtorch threw something that is not an exception");
  }
}

c10::Device cuda_device(int index) {
  return c10::Device(c10::DeviceType::CUDA,
                     static_cast<c10::DeviceIndex>(index));
}

c10::Stream cuda_stream(int index, int64_t stream) {
  return c10::Stream(c10::Stream::UNSAFE, cuda_device(index), stream);
}

}  // namespace

extern "C" {

void td_message_free(char *message) noexcept { std::free(message); }

char *td_generator_new(uint64_t seed, td_generator **out) noexcept {
  return guarded([&] {
    *out = new td_generator{at::make_generator<at::CPUGeneratorImpl>(seed)};
  });
}

void td_generator_free(td_generator *generator) noexcept { delete generator; }

char *td_randn(td_generator *generator, const int64_t *sizes, size_t rank,
               int dtype, void **out) noexcept {
  return guarded([&] {
    at::Tensor noise =
        at::randn(at::IntArrayRef(sizes, rank), generator->inner,
                  at::TensorOptions().dtype(static_cast<at::ScalarType>(dtype)));
    *out = new at::Tensor(std::move(noise));
  });
}

char *td_from_blob(void *data, const int64_t *sizes, size_t rank, int dtype,
                   int device, void *owner, void (*release)(void *),
                   void **out) noexcept {
  return guarded([&] {
    // From here on the last copy of `kept` releases the owner, on every path.
    std::shared_ptr<void> kept(owner, release);
    const auto target =
        device < 0 ? c10::Device(c10::DeviceType::CPU)
                   : cuda_device(device);
    at::Tensor tensor = at::from_blob(
        data, at::IntArrayRef(sizes, rank), [kept](void *) {},
        at::TensorOptions()
            .dtype(static_cast<at::ScalarType>(dtype))
            .device(target),
        // With the device, libtorch need not ask the driver where the memory is.
        target);
    *out = new at::Tensor(std::move(tensor));
  });
}

char *td_cuda_memory(int index, size_t *free, size_t *total,
                     size_t *reserved) noexcept {
  return guarded([&] {
    auto *allocator = at::getDeviceAllocator(c10::DeviceType::CUDA);
    const auto device = static_cast<c10::DeviceIndex>(index);
    std::tie(*free, *total) = allocator->getMemoryInfo(device);
    // Of all pools: StatType::AGGREGATE.
    const auto &bytes = allocator->getDeviceStats(device).reserved_bytes[0];
    *reserved = static_cast<size_t>(bytes.current);
  });
}

bool td_cuda_is_linked() noexcept {
  return c10::impl::hasDeviceGuardImpl(c10::DeviceType::CUDA);
}

char *td_cuda_set_device(int index) noexcept {
  return guarded([&] {
    c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
        ->setDevice(cuda_device(index));
  });
}

char *td_cuda_empty_cache() noexcept {
  return guarded(
      [&] { at::getDeviceAllocator(c10::DeviceType::CUDA)->emptyCache(); });
}

char *td_cuda_out_of_memory_count(int index, int64_t *count) noexcept {
  return guarded([&] {
    *count = at::getDeviceAllocator(c10::DeviceType::CUDA)
                 ->getDeviceStats(static_cast<c10::DeviceIndex>(index))
                 .num_ooms;
  });
}

const void *td_libtorch_address() noexcept {
  return reinterpret_cast<const void *>(&at::getHostAllocator);
}

char *td_pinned_empty(size_t bytes, void **out) noexcept {
  return guarded([&] {
    *out = new at::Tensor(at::empty(
        {static_cast<int64_t>(bytes)},
        at::TensorOptions().dtype(at::kByte).pinned_memory(true)));
  });
}

char *td_stream_new(int index, int64_t *stream) noexcept {
  return guarded([&] {
    *stream = c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
                  ->getStreamFromGlobalPool(cuda_device(index))
                  .id();
  });
}

char *td_stream_make_current(int index, int64_t stream) noexcept {
  return guarded([&] {
    c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
        ->exchangeStream(cuda_stream(index, stream));
  });
}

char *td_stream_synchronize(int index, int64_t stream) noexcept {
  return guarded([&] {
    c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
        ->synchronizeStream(cuda_stream(index, stream));
  });
}

char *td_event_record(void **event, int index, int64_t stream) noexcept {
  return guarded([&] {
    c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
        ->record(event, cuda_stream(index, stream),
                 static_cast<c10::DeviceIndex>(index),
                 c10::EventFlag::PYTORCH_DEFAULT);
  });
}

char *td_event_synchronize(void *event) noexcept {
  return guarded([&] {
    c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
        ->synchronizeEvent(event);
  });
}

void td_event_free(void *event, int index) noexcept {
  if (event == nullptr) return;
  c10::impl::getDeviceGuardImpl(c10::DeviceType::CUDA)
      ->destroyEvent(event, static_cast<c10::DeviceIndex>(index));
}

char *td_copy_non_blocking(void *to, const void *from, int index,
                           int64_t stream) noexcept {
  return guarded([&] {
    c10::StreamGuard guard(cuda_stream(index, stream));
    static_cast<at::Tensor *>(to)->copy_(
        *static_cast<const at::Tensor *>(from), /*non_blocking=*/true);
  });
}

char *td_cuda_empty(const int64_t *sizes, size_t rank, int dtype, int index,
                    int64_t stream, void **out) noexcept {
  return guarded([&] {
    c10::StreamGuard guard(cuda_stream(index, stream));
    *out = new at::Tensor(at::empty(
        at::IntArrayRef(sizes, rank),
        at::TensorOptions()
            .dtype(static_cast<at::ScalarType>(dtype))
            .device(cuda_device(index))));
  });
}

}  // extern "C"
