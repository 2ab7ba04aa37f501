// The host pool: PyTorch's CPU allocator while an attribution runs. Large requests of the attribution's thread get
// best-fit blocks of the address ranges of csrc/memory/ranges.h. That header also says why there is a pool.
//
// The pool counts its bytes. So the peak memory is known without asking the kernel, and a memory budget can be
// enforced. Free pages are kept only while they cannot raise the peak: free pages are decommitted before the peak would
// rise.
//
// Requests of other threads go to PyTorch's default allocator without a lock. The pool stays installed while any of its
// blocks is alive (a hook may keep an activation). The reason is oneDNN, which frees its buffers through whatever
// allocator PyTorch has at that time. Freeing a block never allocates, so freeing never fails.
#include "pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "ranges.h"

namespace igfast {
namespace {

// Smaller requests go to the C library, whose own caches serve them well.
constexpr size_t kSmall = 1 << 16;

// Alignment of blocks in bytes: a cache line, as in PyTorch's own allocator.
constexpr size_t kGrain = 64;

// Up to this many committed bytes, free pages are kept whatever the peak. With 128 MiB, an EfficientNet-Lite0 took 4 to
// 11 % longer: its chunks of 224x224 images needed 143 MiB.
constexpr int64_t kResident = 3 << 26;

struct Block {
  size_t n_bytes = 0;
  Entry entry;  // allocated with the block, so that freeing the block allocates nothing
};

std::mutex mutex;  // guards `blocks`, `others` and csrc/memory/ranges.cpp
std::atomic<int64_t> n_users = 0;

// Never destroyed: tensors may be freed after static objects.
auto& blocks = *new std::unordered_map<void*, Block>;    // in use
auto& others = *new std::unordered_map<void*, int64_t>;  // in use, from the C library

std::atomic<int64_t> in_blocks = 0, in_others = 0;  // bytes in use
std::atomic<int64_t> peak = 0, live_peak = 0;
std::atomic<int64_t> uncounted = 0;  // bytes in use when the first user entered that host_pool_bytes() leaves out
thread_local int64_t limit = -1;     // of host_pool_bytes(), for requests of this thread; negative for none
thread_local int64_t n_entered = 0;  // this thread's share of `n_users`
thread_local bool is_paused = false;

void raise(std::atomic<int64_t>& highest, int64_t value) {
  int64_t before = highest;
  while (value > before && !highest.compare_exchange_weak(before, value)) {
  }
}

// Decommits free pages so that `to_come` more bytes keep within the peak so far and the thread's limit. Returns whether
// those bytes keep within the limit.
bool make_room(int64_t to_come) {
  const int64_t cheap = std::max({peak.load(), host_pool_bytes_in_use() - uncounted, kResident});
  const int64_t most = limit < 0 ? cheap : std::min(limit, cheap);
  if (host_pool_bytes() + to_come > most) discard_idle(host_pool_bytes() + to_come - most);
  return limit < 0 || host_pool_bytes() + to_come <= limit;
}

// Returns a block of the pool, or null if the address space or the thread's limit is exhausted.
void* take_block(size_t n_bytes) {
  const size_t size = rounded_up(n_bytes, kGrain);
  char* begin = find_idle(size);
  if (begin == nullptr && !add_segment(size)) {
    discard_all(false);
    if (!add_segment(size)) return nullptr;
  }
  if (begin == nullptr) begin = find_idle(size);
  Entry of_front = new_entry(), of_rest = new_entry();
  Block& block = blocks[begin];  // the last allocation: nothing fails after this line
  block.n_bytes = size;
  block.entry = take_idle(begin, size, std::move(of_front), std::move(of_rest));
  in_blocks += static_cast<int64_t>(size);
  if (make_room(bytes_without_pages(begin, begin + size))) {
    set_has_pages(begin, begin + size, true);
    return begin;
  }
  in_blocks -= static_cast<int64_t>(size);
  make_idle(begin, begin + size, std::move(block.entry));
  blocks.erase(begin);
  return nullptr;
}

// Returns memory of the C library. The pool's mutex is released meanwhile, because the C library has its own locks.
void* take_of_c_library(size_t n_bytes, std::unique_lock<std::mutex>& lock) {
  const auto request = static_cast<int64_t>(n_bytes);
  const auto check_limit = [&] {
    TORCH_CHECK_WITH(OutOfMemoryError, limit < 0 || make_room(request), "igfast: out of memory: ", request,
                     " bytes were asked for, and ", std::max<int64_t>(0, limit - host_pool_bytes()),
                     " are left of the budget");
  };
  check_limit();
  lock.unlock();
  std::unique_ptr<void, decltype(&c10::free_cpu)> block(nullptr, &c10::free_cpu);
  try {
    block.reset(c10::alloc_cpu(n_bytes));
  } catch (const c10::Error&) {  // out of memory, unless decommitting the free pages makes room
    empty_host_pool();
    block.reset(c10::alloc_cpu(n_bytes));
  }
  lock.lock();
  check_limit();                           // another thread may have allocated meanwhile
  int64_t& counted = others[block.get()];  // not 0 if another allocator freed the previous block at this address
  in_others += request - std::exchange(counted, request);
  return block.release();
}

void* take(size_t n_bytes) {
  std::unique_lock<std::mutex> lock(mutex);
  const bool is_for_pool = n_bytes >= kSmall && n_bytes <= static_cast<size_t>(std::numeric_limits<int64_t>::max()) / 2;
  void* taken = is_for_pool ? take_block(n_bytes) : nullptr;
  if (taken == nullptr) taken = take_of_c_library(n_bytes, lock);
  raise(live_peak, host_pool_bytes_in_use());
  raise(peak, host_pool_bytes());
  return taken;
}

void uninstall_if_unused();

// Frees a block of the pool. Returns false for any other block, after removing its bytes from the count.
bool take_back(void* block) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = blocks.find(block);
  if (found == blocks.end()) {
    const auto other = others.find(block);
    if (other != others.end()) {  // absent if allocated before the pool was installed
      in_others -= other->second;
      others.erase(other);
    }
    return false;
  }
  char *const begin = static_cast<char*>(block), *const end = begin + found->second.n_bytes;
  in_blocks -= end - begin;
  const auto [first, last] = make_idle(begin, end, std::move(found->second.entry));
  blocks.erase(found);
  char* const whole_begin = std::max(first, aligned_down(begin, kUnit));  // with the free ranges that share its units
  char* const whole_end = std::min(last, aligned_up(end, kUnit));
  if (n_users > 0) {
    discard_uncounted(whole_begin, whole_end);
  } else {
    discard(whole_begin, whole_end, true);
    drop_if_unused(first, static_cast<size_t>(last - first));
    uninstall_if_unused();
  }
  return true;
}

void give(void* block) {
  if (block == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(block);
  if (!take_back(block)) c10::free_cpu(block);
}

class HostPool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n_bytes) override {
    if (n_entered == 0 || is_paused) return c10::GetDefaultCPUAllocator()->allocate(n_bytes);
    void* block = n_bytes == 0 ? nullptr : take(n_bytes);
    if (block != nullptr) c10::profiledCPUMemoryReporter().New(block, n_bytes);
    return {block, block, &give, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give; }
  void copy_data(void* to, const void* from, size_t n_bytes) const override { default_copy_data(to, from, n_bytes); }
};

auto& pool = *new HostPool;

void uninstall_if_unused() {
  if (n_users == 0 && blocks.empty() && c10::GetCPUAllocator() == &pool) {
    c10::SetCPUAllocator(c10::GetDefaultCPUAllocator());
  }
}

// A child of fork() has only the forking thread. The handlers keep other threads' locks and entries out of the child.
const int registered = pthread_atfork([] { mutex.lock(); }, [] { mutex.unlock(); },
                                      [] {
                                        n_users = n_entered;
                                        uninstall_if_unused();
                                        mutex.unlock();
                                      });

}  // namespace

bool enter_host_pool() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (n_users == 0) {
    const c10::Allocator* const present = c10::GetCPUAllocator();
    if (present != &pool && present != c10::GetDefaultCPUAllocator()) return false;  // set by the user
    c10::SetCPUAllocator(&pool);
    peak = host_pool_bytes();
    live_peak = host_pool_bytes_in_use();
    uncounted = std::max<int64_t>(0, live_peak - peak);
  }
  ++n_users;
  ++n_entered;
  return true;
}

int64_t leave_host_pool() {
  const std::lock_guard<std::mutex> lock(mutex);
  --n_users;
  --n_entered;
  uninstall_if_unused();
  return n_users;
}

void empty_host_pool(int64_t kept) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (kept > 0) {
    discard_idle(bytes_of_idle_units() - kept);
  } else {
    discard_all(n_users == 0);
  }
}

void count_in_host_pool(int64_t n_bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (n_bytes > 0) make_room(n_bytes);
  in_others += n_bytes;
  raise(live_peak, host_pool_bytes_in_use());
  raise(peak, host_pool_bytes());
}

bool pause_host_pool(bool pause) { return std::exchange(is_paused, pause); }

int64_t restart_host_pool_peak() {
  const std::lock_guard<std::mutex> lock(mutex);
  return live_peak.exchange(host_pool_bytes_in_use());
}

int64_t host_pool_bytes() { return bytes_with_pages() + in_others; }

int64_t host_pool_peak() { return peak; }

int64_t host_pool_bytes_in_use() { return in_blocks + in_others; }

int64_t host_pool_peak_in_use() { return live_peak; }

int64_t set_host_pool_limit(int64_t n_bytes) { return std::exchange(limit, n_bytes); }

}  // namespace igfast
