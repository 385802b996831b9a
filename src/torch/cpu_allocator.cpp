#include "cpu_allocator.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/util/Exception.h>

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <iterator>
#include <list>
#include <map>
#include <mutex>
#include <unordered_map>

namespace {

// Sizes of large blocks are multiples of a huge page, and blocks begin at one.
constexpr size_t kHugePage = size_t{2} << 20;
// Smaller tensors are left to the C library, which keeps their memory itself:
// glibc maps blocks of 32 MiB and more (M_MMAP_THRESHOLD, mallopt(3)) anew each
// time, and uses small pages for all.
constexpr size_t kLarge = size_t{2} << 20;

size_t rounded(size_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

// Maps `size` bytes at a multiple of a huge page; returns NULL without memory.
void *map(size_t size) {
  void *raw = mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const auto begin = reinterpret_cast<uintptr_t>(raw);
  const uintptr_t aligned = rounded(begin);
  if (aligned > begin) munmap(raw, aligned - begin);
  const uintptr_t end = aligned + size;
  if (begin + size + kHugePage > end) {
    munmap(reinterpret_cast<void *>(end), begin + size + kHugePage - end);
  }
  void *data = reinterpret_cast<void *>(aligned);
  madvise(data, size, MADV_HUGEPAGE);
  return data;
}

struct Block {
  void *data;
  size_t size;
};

// Whether the blocks that this thread takes are counted.
thread_local bool counts_blocks = false;

struct Use {
  size_t size;
  bool counted;
};

// Blocks of freed tensors. Thread-safe.
class Cache {
 public:
  void set_limit(size_t bytes) { limit_ = bytes; }

  // Returns a block of at least `size` bytes: a kept one that is at most an
  // eighth larger, or a new one. Returns NULL without memory.
  void *take(size_t size) {
    void *data = take_uncounted(size);
    if (data != nullptr && counts_blocks) counted_ += size;
    return data;
  }

  // Takes a block back. Returns false for memory that is no block.
  bool give(void *data) {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = used_.find(data);
    if (found == used_.end()) return false;
    const Block block{data, found->second.size};
    if (found->second.counted) counted_ -= block.size;
    used_.erase(found);
    in_use_ -= block.size;
    if (block.size > limit_) {
      munmap(block.data, block.size);
      return true;
    }
    drop_until(limit_ - block.size);
    kept_.push_back(block);
    by_size_.emplace(block.size, std::prev(kept_.end()));
    cached_ += block.size;
    return true;
  }

  void trim() {
    const std::lock_guard<std::mutex> guard(lock_);
    drop_until(0);
    peak_ = in_use_;
  }

  size_t cached() {
    const std::lock_guard<std::mutex> guard(lock_);
    return cached_;
  }

  size_t counted() const { return counted_; }

 private:
  void *take_uncounted(size_t size) {
    const std::lock_guard<std::mutex> guard(lock_);
    const auto found = by_size_.lower_bound(size);
    if (found != by_size_.end() && found->first <= size + size / 8) {
      const Block block = *found->second;
      kept_.erase(found->second);
      by_size_.erase(found);
      cached_ -= block.size;
      use(block);
      return block.data;
    }
    // Blocks of other sizes do not add to the largest memory that tensors had,
    // but for an eighth.
    const size_t in_use = in_use_ + size;
    const size_t peak = std::max(peak_, in_use);
    drop_until(peak + peak / 8 - in_use);
    void *data = map(size);
    if (data == nullptr) {
      drop_until(0);
      data = map(size);
    }
    if (data != nullptr) use({data, size});
    return data;
  }

  void use(const Block &block) {
    used_[block.data] = {block.size, counts_blocks};
    in_use_ += block.size;
    peak_ = std::max(peak_, in_use_);
  }

  // Unmaps the blocks that were freed first, until at most `bytes` are kept.
  void drop_until(size_t bytes) {
    while (cached_ > bytes) {
      const Block block = kept_.front();
      const auto range = by_size_.equal_range(block.size);
      for (auto entry = range.first; entry != range.second; ++entry) {
        if (entry->second == kept_.begin()) {
          by_size_.erase(entry);
          break;
        }
      }
      kept_.pop_front();
      cached_ -= block.size;
      munmap(block.data, block.size);
    }
  }

  std::mutex lock_;
  size_t limit_ = 0;
  // Bytes of the blocks in use that were taken by threads that count.
  std::atomic<size_t> counted_{0};
  size_t cached_ = 0;
  size_t in_use_ = 0;
  // The largest `in_use_` since the last trim.
  size_t peak_ = 0;
  // In the order in which they were freed.
  std::list<Block> kept_;
  std::multimap<size_t, std::list<Block>::iterator> by_size_;
  std::unordered_map<void *, Use> used_;
};

// Never destroyed: tensors may be freed while the process ends.
Cache &cache() {
  static Cache *cache = new Cache;
  return *cache;
}

// Only blocks begin at a multiple of a huge page, and few small tensors do.
void release(void *data) {
  if (data == nullptr) return;
  const bool may_be_block = reinterpret_cast<uintptr_t>(data) % kHugePage == 0;
  if (!may_be_block || !cache().give(data)) c10::free_cpu(data);
}

struct CpuAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void *data = nullptr;
    if (bytes < kLarge) {
      data = c10::alloc_cpu(bytes);
    } else {
      data = cache().take(rounded(bytes));
      // The words of c10/core/impl/alloc_cpu.cpp.
      TORCH_CHECK(data != nullptr,
                  "CpuAllocator: can't allocate memory: you tried to allocate ",
                  bytes, " bytes.");
    }
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void *to, const void *from, size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
};

}  // namespace

void td_cpu_allocator_install(size_t max_cached) noexcept {
  static CpuAllocator allocator;
  cache().set_limit(max_cached);
  // libtorch's own allocator has priority 0.
  c10::SetCPUAllocator(&allocator, 1);
}

void td_cpu_allocator_trim() noexcept { cache().trim(); }

size_t td_cpu_allocator_cached() noexcept { return cache().cached(); }

void td_cpu_allocator_count_thread() noexcept { counts_blocks = true; }

size_t td_cpu_allocator_counted() noexcept { return cache().counted(); }
