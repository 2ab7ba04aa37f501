// Serves the large requests for CPU memory of a thread that attributes from ranges of addresses of our own.
//
// Every chunk asks for what the chunk before freed, and within a chunk each layer for what the layers before freed, in
// other sizes. The C library does neither well: what goes back to the system comes back zeroed, page by page, and glibc
// before 2.38 loses the few bytes around each aligned block, so that its heap grows to several times of what is alive
// (glibc bug 14581). Blocks here are cut from what is free with its pages, of any size, and free neighbours are one.
//
// It also counts, which is how a peak is known without asking the kernel and how a memory budget is kept.
//
// Pages that nobody uses stay only as far as that does not raise the peak: for pages beyond it, others go back to the
// system first.
//
// It is PyTorch's allocator while an attribution runs, and passes the requests of all other threads on to the one
// before it without a lock. It stays while any of its blocks is alive (a hook may keep an activation): oneDNN frees its
// buffers by whatever allocator PyTorch has by then. Freeing never allocates, and so never fails.
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

// Bytes of the requests that are served here. Below, the C library's own caches do well.
constexpr size_t kSmall = 1 << 16;

// Blocks begin at multiples of this many bytes: of a cache line, and of what PyTorch's own allocator keeps to.
constexpr size_t kGrain = 64;

// Bytes that may have their pages in any case, so that small chunks do not wait for them: an EfficientNet-Lite0 whose
// chunks of 224x224 wanted 143 MiB took 4 to 11 % longer with 128.
constexpr int64_t kResident = 3 << 26;

struct Block {
  size_t n_bytes = 0;
  Entry entry;  // for when it is free
};

std::mutex mutex;  // of all up to the atomics, and of csrc/memory/ranges.cpp
std::atomic<int64_t> n_users = 0;

// Never destroyed: tensors may be freed after static objects.
auto& blocks = *new std::unordered_map<void*, Block>;    // in use
auto& others = *new std::unordered_map<void*, int64_t>;  // in use, of the C library

std::atomic<int64_t> in_blocks = 0, in_others = 0;  // bytes in use
std::atomic<int64_t> peak = 0, live_peak = 0;
std::atomic<int64_t> uncounted = 0;   // of the bytes in use at the first user's entry, those not in host_pool_bytes()
thread_local int64_t limit = -1;      // of host_pool_bytes(), for requests of this thread
thread_local int64_t n_entered = 0;   // by this thread: its share of `n_users`
thread_local bool is_paused = false;  // for this thread

void raise(std::atomic<int64_t>& highest, int64_t value) {
  int64_t before = highest;
  while (value > before && !highest.compare_exchange_weak(before, value)) {
  }
}

// Makes room for so many bytes that are to come, within the peak so far and the thread's limit; false if there is none.
bool make_room(int64_t to_come) {
  const int64_t cheap = std::max({peak.load(), host_pool_bytes_in_use() - uncounted, kResident});
  const int64_t most = limit < 0 ? cheap : std::min(limit, cheap);
  if (host_pool_bytes() + to_come > most) discard_idle(host_pool_bytes() + to_come - most);
  return limit < 0 || host_pool_bytes() + to_come <= limit;
}

// A block of the pool; null if there are no addresses or not as many units within the limit.
void* take_block(size_t n_bytes) {
  const size_t size = rounded_up(n_bytes, kGrain);
  char* begin = find_idle(size);
  if (begin == nullptr && !add_segment(size)) {
    discard_all(false);
    if (!add_segment(size)) return nullptr;
  }
  if (begin == nullptr) begin = find_idle(size);
  Entry of_front = new_entry(), of_rest = new_entry();
  Block& block = blocks[begin];  // nothing fails from here on
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

// Memory of the C library, which has locks of its own: it is asked while the pool's is open.
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
  } catch (const c10::Error&) {  // out of memory, unless idle pages make up for it
    empty_host_pool();
    block.reset(c10::alloc_cpu(n_bytes));
  }
  lock.lock();
  check_limit();                           // another thread may have taken what there was
  int64_t& counted = others[block.get()];  // not 0 if it was freed by an allocator that does not know the pool
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

// Takes a block back; false if it is of the C library, and counted no longer if it was.
bool take_back(void* block) {
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = blocks.find(block);
  if (found == blocks.end()) {
    const auto other = others.find(block);
    if (other != others.end()) {  // or it is of a time before the pool
      in_others -= other->second;
      others.erase(other);
    }
    return false;
  }
  char *const begin = static_cast<char*>(block), *const end = begin + found->second.n_bytes;
  in_blocks -= end - begin;
  const auto [first, last] = make_idle(begin, end, std::move(found->second.entry));
  blocks.erase(found);
  char* const whole_begin = std::max(first, aligned_down(begin, kUnit));  // with what was idle in its units
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

// In a child of fork(), threads are gone that might have held the mutex, or have been using the pool.
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
    if (present != &pool && present != c10::GetDefaultCPUAllocator()) return false;  // the user's own
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
