// Keeps the large blocks that PyTorch frees on the CPU for the requests that follow, while an attribution runs.
//
// Every chunk asks for the blocks that the chunk before freed, in the same sizes. The C library does not hand them out
// again: glibc before 2.38 cuts a few bytes off around each aligned block and loses them to small requests, so that the
// freed block is too small for an aligned request of its own size (glibc bug 14581), and the heap grows to several
// times of what is alive. Blocks here are ordinary ones of c10::alloc_cpu, so they may be freed by either allocator.
//
// It also counts, which is how a peak is known without asking the kernel and how a memory budget is kept.
#include "host_pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <utility>

namespace igfast {
namespace {

// Bytes. Below the first the C library's own caches do well. From the second on it maps each block by itself, and gives
// it back at once: keeping those would hold several large images' worth of sizes that do not fit each other.
constexpr size_t kSmall = 1 << 16;
constexpr size_t kLarge = 1 << 25;

std::mutex mutex;
int64_t n_users = 0;
std::multimap<size_t, void*> idle;  // by usable size
c10::Allocator* previous = nullptr;

std::atomic<int64_t> held = 0, peak = 0;  // bytes, of blocks in use and idle ones
thread_local int64_t limit = -1;          // of `held`, for requests of this thread

void count(int64_t n_bytes) {
  const int64_t now = held += n_bytes;
  int64_t highest = peak;
  while (now > highest && !peak.compare_exchange_weak(highest, now)) {
  }
}

void release(void* block) {
  held -= static_cast<int64_t>(malloc_usable_size(block));
  c10::free_cpu(block);
}

bool is_pooled(size_t n_bytes) { return n_bytes >= kSmall && n_bytes < kLarge; }

// A request takes an idle block that is at most this much larger.
bool fits(size_t block, size_t request) { return block <= request + request / 8; }

void* take(size_t n_bytes) {
  if (is_pooled(n_bytes)) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = idle.lower_bound(n_bytes);
    if (found != idle.end() && fits(found->first, n_bytes)) {
      void* block = found->second;
      idle.erase(found);
      return block;
    }
  }
  const auto request = static_cast<int64_t>(n_bytes);
  if (limit >= 0 && held + request > limit) {
    empty_host_pool();
    TORCH_CHECK_WITH(OutOfMemoryError, held + request <= limit, "igfast: out of memory: ", request,
                     " bytes were asked for, and ", std::max<int64_t>(0, limit - held), " are left of the budget");
  }
  void* block = nullptr;
  try {
    block = c10::alloc_cpu(n_bytes);
  } catch (const c10::Error&) {  // out of memory, unless the idle blocks make up for it
    empty_host_pool();
    block = c10::alloc_cpu(n_bytes);
  }
  count(static_cast<int64_t>(malloc_usable_size(block)));
  return block;
}

void give(void* block) {
  if (block == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(block);
  const size_t n_bytes = malloc_usable_size(block);
  if (is_pooled(n_bytes)) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (n_users > 0) {
      idle.emplace(n_bytes, block);
      return;
    }
  }
  release(block);
}

class HostPool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n_bytes) override {
    void* block = n_bytes == 0 ? nullptr : take(n_bytes);
    if (block != nullptr) c10::profiledCPUMemoryReporter().New(block, n_bytes);
    return {block, block, &give, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give; }
  void copy_data(void* to, const void* from, size_t n_bytes) const override { default_copy_data(to, from, n_bytes); }
};

HostPool pool;

}  // namespace

bool enter_host_pool() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (n_users == 0) {
    if (c10::GetCPUAllocator() != c10::GetDefaultCPUAllocator()) return false;  // the user's own
    previous = c10::GetCPUAllocator();
    c10::SetCPUAllocator(&pool);
    peak = held.load();
  }
  ++n_users;
  return true;
}

void leave_host_pool() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (--n_users == 0) c10::SetCPUAllocator(previous);
}

void empty_host_pool() {
  const std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [n_bytes, block] : idle) release(block);
  idle.clear();
}

int64_t host_pool_bytes() { return held; }

int64_t host_pool_peak() { return peak; }

int64_t set_host_pool_limit(int64_t n_bytes) { return std::exchange(limit, n_bytes); }

}  // namespace igfast
