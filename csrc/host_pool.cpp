// Keeps the large blocks that PyTorch frees on the CPU for the requests that follow, while an attribution runs.
//
// Every chunk asks for the blocks that the chunk before freed, in the same sizes. The C library does not hand them out
// again: glibc before 2.38 cuts a few bytes off around each aligned block and loses them to small requests, so that the
// freed block is too small for an aligned request of its own size (glibc bug 14581), and the heap grows to several
// times of what is alive. Blocks here are ordinary ones of c10::alloc_cpu, so they may be freed by either allocator.
//
// It also counts, which is how a peak is known without asking the kernel and how a memory budget is kept.
//
// Blocks that nobody uses stay resident only as far as that does not raise the peak: beyond what tensors alone have
// needed so far, the pages of those that were freed first go back to the system, and come back zeroed with the next use
// of the block. The blocks themselves stay, because the C library would not find room for them again.
#include "host_pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <malloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace igfast {
namespace {

// Bytes of the blocks that are kept. Below, the C library's own caches do well.
constexpr size_t kSmall = 1 << 16;

// Bytes that may be resident in any case, so that small chunks do not wait for pages: four images of 224x224 on an
// EfficientNet-Lite0 want 143 MiB, and take 4 to 11 % longer with 128 MiB.
constexpr int64_t kResident = 3 << 26;

// Bytes of a huge page: of the x86-64, and of most other processors.
constexpr uintptr_t kHuge = 1 << 21;

struct Idle {
  void* block;
  uint64_t freed_at;  // a count of frees, and the key in `by_age`
};
using IdleBlocks = std::multimap<size_t, Idle>;  // by usable size; of one size, the last freed comes last

std::mutex mutex;  // of all up to the atomics
int64_t n_users = 0;
uint64_t n_freed = 0;
IdleBlocks resident, discarded;                   // those that have their pages, and those whose pages went back
std::map<uint64_t, IdleBlocks::iterator> by_age;  // the resident ones, the first freed first
c10::Allocator* previous = nullptr;

std::atomic<int64_t> live = 0, kept = 0;  // bytes of blocks in use, of resident idle ones
std::atomic<int64_t> peak = 0, live_peak = 0;
thread_local int64_t limit = -1;  // of live + kept, for requests of this thread
thread_local double slack = 1;    // how much larger a block may be than a request of this thread

bool is_pooled(size_t n_bytes) { return n_bytes >= kSmall; }

bool fits(size_t block, size_t request) {
  return static_cast<double>(block) <= (slack + 0.125) * static_cast<double>(request);
}

void raise(std::atomic<int64_t>& highest, int64_t value) {
  int64_t before = highest;
  while (value > before && !highest.compare_exchange_weak(before, value)) {
  }
}

void discard_pages(void* block, size_t n_bytes) {
  static const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = (reinterpret_cast<uintptr_t>(block) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(block) + n_bytes) / page * page;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

// Whether the system gives huge pages to those who ask. Where it gives them to nobody or to all, there is no asking.
bool huge_pages_on_request() {
  static const bool on_request = [] {
    std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
    std::string setting;
    return static_cast<bool>(std::getline(file, setting)) && setting.find("[madvise]") != std::string::npos;
  }();
  return on_request;
}

// Asks for huge pages inside a block, which come in 512 times fewer and 7 times cheaper steps, or no longer does.
void want_huge_pages(void* block, size_t n_bytes, bool wanted) {
  if (n_bytes < kHuge || !huge_pages_on_request()) return;
  const auto begin = (reinterpret_cast<uintptr_t>(block) + kHuge - 1) / kHuge * kHuge;
  const auto end = (reinterpret_cast<uintptr_t>(block) + n_bytes) / kHuge * kHuge;
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, wanted ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
}

// Gives a block back to the C library, on ordinary pages from here on.
void free_block(void* block, size_t n_bytes) {
  want_huge_pages(block, n_bytes, false);
  c10::free_cpu(block);
}

// Counts a block that comes into use and makes room for it.
void use(size_t n_bytes) {
  live += static_cast<int64_t>(n_bytes);
  raise(live_peak, live);
  if (kept > 0 && live + kept > std::max<int64_t>(live_peak, kResident)) {
    const std::lock_guard<std::mutex> lock(mutex);
    while (!by_age.empty() && live + kept > std::max<int64_t>(live_peak, kResident)) {
      const auto oldest = by_age.begin()->second;
      discard_pages(oldest->second.block, oldest->first);
      kept -= static_cast<int64_t>(oldest->first);
      by_age.erase(by_age.begin());
      discarded.insert(resident.extract(oldest));
    }
  }
  raise(peak, live + kept);
}

// Of the smallest blocks that fit a request, the last freed.
IdleBlocks::iterator find(IdleBlocks& blocks, size_t n_bytes) {
  const auto first = blocks.lower_bound(n_bytes);
  if (first == blocks.end() || !fits(first->first, n_bytes)) return blocks.end();
  return std::prev(blocks.upper_bound(first->first));
}

// An idle block for a request, or null. One that has its pages comes first: while the oldest were handed out first,
// those had lost theirs, and each chunk of a BERT-base faulted in all of its 300 MiB, which took a tenth of its time.
void* reuse(size_t n_bytes) {
  const std::lock_guard<std::mutex> lock(mutex);
  auto found = find(resident, n_bytes);
  const bool is_resident = found != resident.end();
  if (!is_resident) found = find(discarded, n_bytes);
  if (!is_resident && found == discarded.end()) return nullptr;
  const int64_t to_come = is_resident ? 0 : static_cast<int64_t>(found->first);
  if (limit >= 0 && live + kept + to_come > limit) return nullptr;
  void* block = found->second.block;
  if (is_resident) {
    kept -= static_cast<int64_t>(found->first);
    by_age.erase(found->second.freed_at);
  }
  (is_resident ? resident : discarded).erase(found);
  return block;
}

void check_limit(int64_t request) {
  if (limit < 0 || live + kept + request <= limit) return;
  empty_host_pool();
  TORCH_CHECK_WITH(OutOfMemoryError, live + request <= limit, "igfast: out of memory: ", request,
                   " bytes were asked for, and ", std::max<int64_t>(0, limit - live), " are left of the budget");
}

void* take(size_t n_bytes) {
  void* block = is_pooled(n_bytes) ? reuse(n_bytes) : nullptr;
  if (block == nullptr) {
    check_limit(static_cast<int64_t>(n_bytes));
    try {
      block = c10::alloc_cpu(n_bytes);
    } catch (const c10::Error&) {  // out of memory, unless the idle blocks make up for it
      empty_host_pool();
      block = c10::alloc_cpu(n_bytes);
    }
    want_huge_pages(block, malloc_usable_size(block), true);
  }
  use(malloc_usable_size(block));
  return block;
}

void give(void* block) {
  if (block == nullptr) return;
  c10::profiledCPUMemoryReporter().Delete(block);
  const size_t n_bytes = malloc_usable_size(block);
  live -= static_cast<int64_t>(n_bytes);
  if (is_pooled(n_bytes)) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (n_users > 0) {
      ++n_freed;
      by_age.emplace(n_freed, resident.emplace(n_bytes, Idle{block, n_freed}));
      kept += static_cast<int64_t>(n_bytes);
      return;
    }
  }
  free_block(block, n_bytes);
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
    peak = live_peak = live.load();
  }
  ++n_users;
  return true;
}

void leave_host_pool() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (--n_users == 0) c10::SetCPUAllocator(previous);
}

void empty_host_pool(int64_t returned_from) {
  IdleBlocks with_pages, without;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    with_pages.swap(resident);
    without.swap(discarded);
    by_age.clear();
    kept = 0;
  }
  for (const auto& [n_bytes, idle] : with_pages) {
    if (static_cast<int64_t>(n_bytes) >= returned_from) discard_pages(idle.block, n_bytes);
    free_block(idle.block, n_bytes);
  }
  for (const auto& [n_bytes, idle] : without) free_block(idle.block, n_bytes);
}

void set_host_pool_slack(double times) { slack = times; }

int64_t host_pool_bytes() { return live + kept; }

int64_t host_pool_peak() { return peak; }

int64_t host_pool_bytes_in_use() { return live; }

int64_t host_pool_peak_in_use() { return live_peak; }

int64_t set_host_pool_limit(int64_t n_bytes) { return std::exchange(limit, n_bytes); }

}  // namespace igfast
