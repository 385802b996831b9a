#include "device.h"

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <cstdlib>
#include <map>

#include "memory.h"

namespace pretend {

void throw_torch_error(const std::string &text) { TORCH_CHECK(false, text); }

namespace {

thread_local int device_now = 0;
thread_local std::map<int, c10::StreamId> stream_now;

StreamKey key_of(const c10::Stream &stream) { return stream_key(stream.device_index(), stream.id()); }

using c10::Device;
using c10::DeviceIndex;
using c10::Stream;

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  Device exchangeDevice(Device device) const override {
    const Device before = getDevice();
    device_now = device.index();
    return before;
  }
  Device getDevice() const override {
    return Device(c10::DeviceType::CUDA, static_cast<DeviceIndex>(device_now));
  }
  void setDevice(Device device) const override {
    check_alive();
    const char *reason = std::getenv("PRETEND_NO_DEVICE");
    TORCH_CHECK(device.index() < device_count(), reason != nullptr ? reason : "CUDA error: invalid device ordinal");
    device_now = device.index();
  }
  void uncheckedSetDevice(Device device) const noexcept override { device_now = device.index(); }
  Stream getStream(Device device) const override { return Stream(Stream::UNSAFE, device, stream_now[device.index()]); }
  Stream getDefaultStream(Device device) const override { return Stream(Stream::UNSAFE, device, 0); }
  Stream getStreamFromGlobalPool(Device device, bool) const override {
    static std::atomic<c10::StreamId> next{7};
    return Stream(Stream::UNSAFE, device, next++);
  }
  Stream getNewStream(Device device, int) const override { return getStreamFromGlobalPool(device, false); }
  Stream exchangeStream(Stream stream) const override {
    const Stream before = getStream(stream.device());
    stream_now[stream.device_index()] = stream.id();
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return static_cast<DeviceIndex>(device_count()); }
  bool queryStream(const Stream &) const override { return true; }
  void synchronizeStream(const Stream &stream) const override {
    check_alive();
    host_waits_stream(key_of(stream), "stream");
  }
  void synchronizeDevice(const DeviceIndex device) const override {
    check_alive();
    host_waits_device(device);
  }
  void record(void **event, const Stream &stream, const DeviceIndex, const c10::EventFlag) const override {
    check_alive();
    *event = record_event(static_cast<Event *>(*event), key_of(stream));
  }
  void block(void *event, const Stream &stream) const override {
    check_alive();
    stream_waits(key_of(stream), static_cast<Event *>(event));
  }
  bool queryEvent(void *event) const override {
    check_alive();
    return event == nullptr || event_done(static_cast<Event *>(event));
  }
  void synchronizeEvent(void *event) const override {
    check_alive();
    if (event != nullptr) host_waits_event(static_cast<Event *>(event));
  }
  void destroyEvent(void *event, const DeviceIndex) const noexcept override {
    destroy_event(static_cast<Event *>(event));
  }
  void recordDataPtrOnStream(const c10::DataPtr &, const Stream &) const override {}
} guard;

const c10::impl::DeviceGuardImplRegistrar registered(c10::DeviceType::CUDA, &guard);

}  // namespace

int current_device() { return device_now; }
StreamKey current_stream() { return stream_key(device_now, stream_now[device_now]); }

}  // namespace pretend

namespace at {

struct PretendHooks final : CUDAHooksInterface {
  explicit PretendHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return pretend::device_count() > 0; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return static_cast<DeviceIndex>(pretend::device_count()); }
  DeviceIndex current_device() const override { return static_cast<DeviceIndex>(pretend::current_device()); }
  int getNumGPUs() const override { return pretend::device_count(); }
  bool isPinnedPtr(const void *address) const override { return pretend::is_pinned(address); }
  Allocator *getPinnedMemoryAllocator() const override { return pretend::pinned_allocator(); }
  Allocator *getCUDADeviceAllocator() const override { return pretend::device_allocator(); }
  Device getDeviceFromPtr(void *) const override {
    return Device(DeviceType::CUDA, static_cast<DeviceIndex>(pretend::current_device()));
  }
  void deviceSynchronize(DeviceIndex device) const override {
    pretend::check_alive();
    pretend::host_waits_device(device);
  }
};

namespace {
RegistererCUDAHooksRegistry hooks("CUDAHooks", CUDAHooksRegistry(),
                                  RegistererCUDAHooksRegistry::DefaultCreator<PretendHooks>);
}

}  // namespace at
