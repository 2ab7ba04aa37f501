// Serves PyTorch's large requests on the CPU from ranges of addresses of our own, while an attribution runs.
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
// The pool stays PyTorch's allocator as long as any of its blocks is alive, and passes requests on when no attribution
// runs: oneDNN frees its buffers by whatever allocator PyTorch has by then. Freeing never allocates, and so never
// fails.
#include "host_pool.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace igfast {
namespace {

// Bytes of the requests that are served here. Below, the C library's own caches do well.
constexpr size_t kSmall = 1 << 16;

// Blocks begin at multiples of this many bytes: of a cache line, and of what PyTorch's own allocator keeps to.
constexpr size_t kGrain = 64;

// Pages come and go in units of so many bytes: of a huge page of the x86-64, and of most other processors.
constexpr size_t kUnit = 1 << 21;

// Addresses that are asked for at once. They cost nothing, unless addresses are what is limited.
constexpr size_t kSegment = size_t{1} << 32, kSegmentOfLimited = 1 << 28;

// Bytes that may have their pages in any case, so that small chunks do not wait for them: an EfficientNet-Lite0 whose
// chunks of 224x224 wanted 143 MiB took 4 to 11 % longer with 128.
constexpr int64_t kResident = 3 << 26;

struct Segment {
  size_t n_bytes;
  std::vector<bool> has_pages;  // by unit; not those in use of a unit whose others went back
};

using ByAddress = std::map<char*, size_t>;
using BySize = std::set<std::pair<size_t, char*>>;

// Where a range is entered that nobody uses.
struct Entry {
  ByAddress::node_type by_address;
  BySize::node_type by_size;
};

struct Block {
  size_t n_bytes = 0;
  Entry entry;  // for when it is free
};

std::mutex mutex;  // of all up to the atomics
std::atomic<int64_t> n_users = 0;

// Never destroyed: tensors may be freed after static objects.
auto& segments = *new std::map<char*, Segment>;
auto& idle = *new ByAddress;                             // ranges that nobody uses, no two of a segment side by side
auto& by_size = *new BySize;                             // the same
auto& blocks = *new std::unordered_map<void*, Block>;    // in use
auto& others = *new std::unordered_map<void*, int64_t>;  // in use, of the C library

std::atomic<int64_t> in_blocks = 0, in_others = 0;  // bytes in use
std::atomic<int64_t> with_pages = 0;                // of all units
std::atomic<int64_t> peak = 0, live_peak = 0;
thread_local int64_t limit = -1;     // of host_pool_bytes(), for requests of this thread
thread_local int64_t n_entered = 0;  // by this thread: its share of `n_users`

size_t rounded_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

char* aligned_up(char* address, size_t unit) {
  return reinterpret_cast<char*>(rounded_up(reinterpret_cast<uintptr_t>(address), unit));
}

char* aligned_down(char* address, size_t unit) {
  return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(address) / unit * unit);
}

void raise(std::atomic<int64_t>& highest, int64_t value) {
  int64_t before = highest;
  while (value > before && !highest.compare_exchange_weak(before, value)) {
  }
}

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Whether the system gives huge pages, of a unit, to those who ask. Where it gives them to nobody or to all, there is
// no asking.
bool huge_pages_on_request() {
  static const bool on_request =
      first_line("/sys/kernel/mm/transparent_hugepage/enabled").find("[madvise]") != std::string::npos &&
      first_line("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size") == std::to_string(kUnit);
  return on_request;
}

bool is_limited(decltype(RLIMIT_AS) resource) {
  rlimit allowed{};
  return getrlimit(resource, &allowed) == 0 && allowed.rlim_cur != RLIM_INFINITY;
}

// Whether addresses without pages count, for the process or for the system (vm.overcommit_memory).
bool addresses_are_limited() {
  return is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA) || first_line("/proc/sys/vm/overcommit_memory") == "2";
}

std::pair<char* const, Segment>& segment_of(char* address) { return *std::prev(segments.upper_bound(address)); }

// Calls a function with the reference to `has_pages` of each unit from `begin` to `end`.
template <typename Function>
void for_each_unit(char* begin, char* end, const Function& function) {
  auto& [start, segment] = segment_of(begin);
  const auto last = static_cast<size_t>(aligned_up(end, kUnit) - start) / kUnit;
  for (auto unit = static_cast<size_t>(begin - start) / kUnit; unit < last; ++unit) function(segment.has_pages[unit]);
}

int64_t bytes_without_pages(char* begin, char* end) {
  int64_t n_bytes = 0;
  for_each_unit(begin, end, [&](bool has_pages) { n_bytes += has_pages ? 0 : kUnit; });
  return n_bytes;
}

void set_has_pages(char* begin, char* end, bool value) {
  for_each_unit(begin, end, [&](std::vector<bool>::reference has_pages) {
    if (has_pages != value) with_pages += value ? kUnit : -static_cast<int64_t>(kUnit);
    has_pages = value;
  });
}

// Returns pages between two addresses that nobody uses. Where others live in the same unit, that splits a huge page, so
// it is whole units while attributions run. A unit that comes back counts as a whole: the next call gets its budget
// beyond what is left of it here.
void discard(char* begin, char* end) {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t step = n_users == 0 ? page : kUnit;
  begin = aligned_up(begin, step);
  end = aligned_down(end, step);
  if (end > begin && madvise(begin, static_cast<size_t>(end - begin), MADV_DONTNEED) == 0) {
    set_has_pages(begin, end, false);
  }
}

// Bytes of whole units that nobody uses.
int64_t bytes_of_idle_units() {
  int64_t n_bytes = 0;
  for (const auto& [begin, size] : idle) {
    char *const first = aligned_up(begin, kUnit), *const last = aligned_down(begin + size, kUnit);
    if (last > first) n_bytes += last - first - bytes_without_pages(first, last);
  }
  return n_bytes;
}

// Returns units that nobody uses, the highest first, until so many bytes are free of them or there are no more.
void discard_idle(int64_t n_bytes) {
  for (auto range = idle.rbegin(); range != idle.rend() && n_bytes > 0; ++range) {
    char* const begin = aligned_up(range->first, kUnit);
    for (char* end = aligned_down(range->first + range->second, kUnit); end > begin && n_bytes > 0; end -= kUnit) {
      if (bytes_without_pages(end - kUnit, end) > 0) continue;
      discard(end - kUnit, end);
      n_bytes -= kUnit;
    }
  }
}

Entry new_entry() {
  ByAddress address{{nullptr, 0}};
  BySize size{{0, nullptr}};
  return {address.extract(address.begin()), size.extract(size.begin())};
}

void insert_idle(char* begin, size_t n_bytes, Entry entry) {
  entry.by_address.key() = begin;
  entry.by_address.mapped() = n_bytes;
  entry.by_size.value() = {n_bytes, begin};
  idle.insert(std::move(entry.by_address));
  by_size.insert(std::move(entry.by_size));
}

Entry extract_idle(char* begin, size_t n_bytes) { return {idle.extract(begin), by_size.extract({n_bytes, begin})}; }

// Makes a range idle, one with its idle neighbours; returns the whole.
std::pair<char*, char*> make_idle(char* begin, char* end, Entry entry) {
  char* const start = segment_of(begin).first;
  const auto after = idle.lower_bound(begin);
  if (after != idle.end() && after->first == end && segments.count(end) == 0) {
    end += after->second;
    extract_idle(after->first, after->second);
  }
  const auto at_or_after = idle.lower_bound(begin);
  if (at_or_after != idle.begin()) {
    const auto [before, n_bytes] = *std::prev(at_or_after);
    if (before >= start && before + n_bytes == begin) {
      begin = before;
      extract_idle(before, n_bytes);
    }
  }
  insert_idle(begin, static_cast<size_t>(end - begin), std::move(entry));
  return {begin, end};
}

// Asks the system for addresses of so many bytes; false if there are none.
bool map_segment(size_t n_bytes, int flags) {
  const size_t mapped = n_bytes + kUnit;
  Entry entry = new_entry();
  void* const address = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
  if (address == MAP_FAILED) return false;
  char *const first = static_cast<char*>(address), *const begin = aligned_up(first, kUnit);
  if (begin > first) munmap(first, static_cast<size_t>(begin - first));
  if (first + mapped > begin + n_bytes) munmap(begin + n_bytes, static_cast<size_t>(first + mapped - begin - n_bytes));
  if (huge_pages_on_request()) madvise(begin, n_bytes, MADV_HUGEPAGE);
  segments.emplace(begin, Segment{n_bytes, std::vector<bool>(n_bytes / kUnit)});
  insert_idle(begin, n_bytes, std::move(entry));
  return true;
}

// Adds a segment for a request. One of the request's own size is refused if the system thinks that it has not as much.
bool add_segment(size_t request) {
  const size_t least = rounded_up(request, kUnit), usual = addresses_are_limited() ? kSegmentOfLimited : kSegment;
  return (least < usual && map_segment(usual, MAP_NORESERVE)) || map_segment(least, 0);
}

// Returns the addresses of a segment that is idle as a whole, and has no pages.
void drop_if_unused(char* begin, size_t n_bytes) {
  const auto segment = segments.find(begin);
  if (segment == segments.end() || segment->second.n_bytes != n_bytes) return;
  const auto& has_pages = segment->second.has_pages;
  if (std::find(has_pages.begin(), has_pages.end(), true) != has_pages.end()) return;
  extract_idle(begin, n_bytes);
  segments.erase(segment);
  munmap(begin, n_bytes);
}

// Returns all pages that nobody uses.
void discard_all() {
  for (auto range = idle.begin(); range != idle.end();) {
    const auto [begin, n_bytes] = *range++;  // it may be dropped
    discard(begin, begin + n_bytes);
    drop_if_unused(begin, n_bytes);
  }
}

// Where so many idle bytes are: as many of them with pages as there are, in the smallest such range. Null if nowhere.
char* find(size_t n_bytes) {
  char* best = nullptr;
  int64_t fewest = std::numeric_limits<int64_t>::max();
  for (auto range = by_size.lower_bound({n_bytes, nullptr}); range != by_size.end() && fewest > 0; ++range) {
    const int64_t to_come = bytes_without_pages(range->second, range->second + n_bytes);
    if (to_come < fewest) best = range->second, fewest = to_come;
  }
  return best;
}

// Makes room for so many bytes that are to come, within the peak so far and the thread's limit; false if there is none.
bool make_room(int64_t to_come) {
  const int64_t cheap = std::max({peak.load(), host_pool_bytes_in_use(), kResident});
  const int64_t most = limit < 0 ? cheap : std::min(limit, cheap);
  if (host_pool_bytes() + to_come > most) discard_idle(host_pool_bytes() + to_come - most);
  return limit < 0 || host_pool_bytes() + to_come <= limit;
}

// A block of the pool; null if there are no addresses or not as many units within the limit.
void* take_block(size_t n_bytes) {
  const size_t size = rounded_up(n_bytes, kGrain);
  char* begin = find(size);
  if (begin == nullptr && !add_segment(size)) {
    discard_all();
    if (!add_segment(size)) return nullptr;
  }
  if (begin == nullptr) begin = find(size);
  Entry of_rest = new_entry();
  Block& block = blocks[begin];  // nothing fails from here on
  const size_t found = idle.at(begin);
  block.n_bytes = size;
  block.entry = extract_idle(begin, found);
  if (found > size) insert_idle(begin + size, found - size, std::move(of_rest));
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

// Memory of the C library, which has locks of its own, for a request that is in `in_others` already.
void* take_of_c_library(size_t n_bytes) {
  const auto request = static_cast<int64_t>(n_bytes);
  void* block = nullptr;
  try {
    try {
      block = c10::alloc_cpu(n_bytes);
    } catch (const c10::Error&) {  // out of memory, unless idle pages make up for it
      empty_host_pool();
      block = c10::alloc_cpu(n_bytes);
    }
    const std::lock_guard<std::mutex> lock(mutex);
    int64_t& counted = others[block];  // not 0 if it was freed by an allocator that does not know the pool
    in_others -= std::exchange(counted, request);
  } catch (...) {
    in_others -= request;
    c10::free_cpu(block);
    throw;
  }
  return block;
}

void* take(size_t n_bytes) {
  std::unique_lock<std::mutex> lock(mutex);
  if (n_users == 0) {
    lock.unlock();
    return c10::alloc_cpu(n_bytes);
  }
  const bool is_for_pool = n_bytes >= kSmall && n_bytes <= static_cast<size_t>(std::numeric_limits<int64_t>::max()) / 2;
  void* taken = is_for_pool ? take_block(n_bytes) : nullptr;
  if (taken == nullptr) {
    const auto request = static_cast<int64_t>(n_bytes);
    TORCH_CHECK_WITH(OutOfMemoryError, limit < 0 || make_room(request), "igfast: out of memory: ", request,
                     " bytes were asked for, and ", std::max<int64_t>(0, limit - host_pool_bytes()),
                     " are left of the budget");
    in_others += request;
    lock.unlock();
    taken = take_of_c_library(n_bytes);
    lock.lock();
  }
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
  if (n_users == 0) {
    discard(std::max(first, aligned_down(begin, kUnit)), std::min(last, aligned_up(end, kUnit)));
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
    discard_all();
  }
}

int64_t host_pool_bytes() { return with_pages + in_others; }

int64_t host_pool_peak() { return peak; }

int64_t host_pool_bytes_in_use() { return in_blocks + in_others; }

int64_t host_pool_peak_in_use() { return live_peak; }

int64_t set_host_pool_limit(int64_t n_bytes) { return std::exchange(limit, n_bytes); }

}  // namespace igfast
