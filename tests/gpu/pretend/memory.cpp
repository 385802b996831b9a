#include "memory.h"

#include <ATen/core/CachingHostAllocator.h>
#include <c10/core/CachingDeviceAllocator.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <new>
#include <sstream>

#include "device.h"

namespace pretend {
namespace {

constexpr size_t kDefaultTotal = size_t{80} << 30;
constexpr unsigned char kNoise = 0xff;  // NaN in every floating dtype: shows reads of memory that nobody wrote.

struct Allocation {
  int device;
  size_t bytes;
  StreamKey owner;  // The stream on which it was made; the allocator gives the memory to this stream again.
  StreamKey writer;
  uint64_t written;
  std::map<StreamKey, uint64_t> uses;
  bool recorded;  // By record_stream.
};

std::mutex lock;
std::map<void *, Allocation> live;
std::map<int, size_t> used, cached, peak;
std::map<const char *, size_t> pinned;
std::map<const char *, bool> pinned_in_stream;
size_t pinned_bytes = 0;

size_t rounded(size_t bytes, size_t to) { return (bytes + to - 1) / to * to; }

void release(void *data) {
  Allocation gone;
  {
    std::lock_guard<std::mutex> guard(lock);
    gone = live.at(data);
    live.erase(data);
    used[gone.device] -= gone.bytes;
  }
  if (gone.recorded) check_alive_in_destructor("memory that record_stream knows was freed");
  for (const auto &[stream, work] : gone.uses) {
    if (!gone.recorded && !knows(gone.owner, stream, work)) {
      say("RACE memory was freed while stream " + std::to_string(stream) + " uses it");
    }
  }
  std::memset(data, kNoise, gone.bytes);
  std::free(data);
}

// The index of the sum over all pools (c10::CachingAllocator::StatType::AGGREGATE).
constexpr size_t kAllPools = 0;

struct DeviceMemory final : c10::DeviceAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    const int device = current_device();
    const c10::Device where(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(device));
    const size_t size = rounded(bytes, 512);
    if (size == 0) return {nullptr, nullptr, &c10::detail::deleteNothing, where};
    const size_t limit = memory_limit();
    bool full = check_allocation();
    if (!full && limit > 0 && used[device] + size > limit) {
      count_out_of_memory();
      full = true;
    }
    if (full) {
      std::ostringstream text;
      text << "CUDA out of memory. Tried to allocate " << bytes << " bytes. GPU " << device << " is a pretend device";
      throw c10::OutOfMemoryError({__func__, __FILE__, __LINE__}, text.str());
    }
    void *data = std::aligned_alloc(512, size);
    if (data == nullptr) throw std::bad_alloc();
    std::memset(data, kNoise, size);
    std::lock_guard<std::mutex> guard(lock);
    const StreamKey owner = current_stream();
    live[data] = {device, size, owner, owner, 0, {}, false};
    used[device] += size;
    peak[device] = std::max(peak[device], used[device]);
    cached[device] = std::max(cached[device], used[device]);
    return {data, data, &release, where};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void *to, const void *from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {
    check_alive();
    say("empty cache");
    std::lock_guard<std::mutex> guard(lock);
    for (auto &[device, bytes] : cached) bytes = used[device];
  }
  void recordStream(const c10::DataPtr &data, c10::Stream) override {
    std::lock_guard<std::mutex> guard(lock);
    const auto found = live.find(data.get());
    if (found != live.end()) found->second.recorded = true;
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override {
    c10::CachingDeviceAllocator::DeviceStats stats;
    {
      std::lock_guard<std::mutex> guard(lock);
      stats.reserved_bytes[kAllPools].current = static_cast<int64_t>(cached[device]);
    }
    stats.num_ooms = out_of_memory_count();
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex) override {}
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override {
    check_alive();
    const size_t total = memory_limit() > 0 ? memory_limit() : kDefaultTotal;
    std::lock_guard<std::mutex> guard(lock);
    const size_t taken = std::min(cached[device], total);
    return {total - taken, total};
  }
} device_memory;

// Pinned memory is never returned to the system: libtorch too keeps it while a stream may use it.
void unpin(void *data) {
  bool in_stream = false;
  {
    std::lock_guard<std::mutex> guard(lock);
    const auto *key = static_cast<const char *>(data);
    pinned_bytes -= pinned.at(key);
    in_stream = pinned_in_stream[key];
  }
  if (in_stream) check_alive_in_destructor("pinned memory that a stream used was freed");
}

struct PinnedMemory final : at::HostAllocator {
  c10::DataPtr allocate(size_t bytes) override {
    check_alive();
    const size_t size = std::max<size_t>(64, rounded(bytes, 64));
    void *data = std::aligned_alloc(64, size);
    if (data == nullptr) throw std::bad_alloc();
    say("pinned memory of " + std::to_string(size) + " bytes");
    std::lock_guard<std::mutex> guard(lock);
    pinned[static_cast<const char *>(data)] = size;
    pinned_bytes += size;
    return {data, data, &unpin, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &unpin; }
  void copy_data(void *to, const void *from, size_t bytes) const override { std::memcpy(to, from, bytes); }
  bool record_event(void *, void *, c10::Stream) override { return true; }
  void empty_cache() override { check_alive(); }
  at::HostStats get_stats() override { return {}; }
  void reset_accumulated_stats() override {}
  void reset_peak_stats() override {}
} pinned_memory;

struct Register {
  Register() {
    c10::SetAllocator(c10::DeviceType::CUDA, &device_memory, 9);
    at::setHostAllocator(c10::DeviceType::CUDA, &pinned_memory, 9);
  }
} registered;

std::map<const char *, size_t>::iterator pinned_block(const void *address) {
  const auto *at = static_cast<const char *>(address);
  auto block = pinned.upper_bound(at);
  if (block == pinned.begin()) return pinned.end();
  --block;
  return at < block->first + block->second ? block : pinned.end();
}

}  // namespace

c10::Allocator *device_allocator() { return &device_memory; }
c10::Allocator *pinned_allocator() { return &pinned_memory; }

void reads(void *base, StreamKey stream, uint64_t work, const char *who) {
  std::lock_guard<std::mutex> guard(lock);
  const auto found = live.find(base);
  if (found == live.end()) return;
  Allocation &allocation = found->second;
  if (!knows(stream, allocation.writer, allocation.written)) {
    say(std::string("RACE ") + who + " reads on stream " + std::to_string(stream) + " what stream " +
        std::to_string(allocation.writer) + " writes");
  }
  allocation.uses[stream] = work;
}

void writes(void *base, StreamKey stream, uint64_t work) {
  std::lock_guard<std::mutex> guard(lock);
  const auto found = live.find(base);
  if (found == live.end()) return;
  found->second.writer = stream;
  found->second.written = work;
  found->second.uses[stream] = work;
}

bool is_pinned(const void *address) {
  std::lock_guard<std::mutex> guard(lock);
  return pinned_block(address) != pinned.end();
}

void uses_pinned(const void *address) {
  std::lock_guard<std::mutex> guard(lock);
  const auto block = pinned_block(address);
  if (block != pinned.end()) pinned_in_stream[block->first] = true;
}

}  // namespace pretend

uint64_t pretend_memory(int device, int what) {
  std::lock_guard<std::mutex> guard(pretend::lock);
  switch (what) {
    case 0: return pretend::used[device];
    case 1: return pretend::cached[device];
    case 2: return pretend::peak[device];
    default: return pretend::pinned_bytes;
  }
}
