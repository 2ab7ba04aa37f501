#include "ranges.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <fstream>
#include <iterator>
#include <limits>
#include <string>
#include <vector>

namespace igfast {
namespace {

// Bytes of address space mapped at once. Uncommitted addresses cost nothing unless the system limits address space.
constexpr size_t kSegment = size_t{1} << 32, kSegmentOfLimited = 1 << 28;

struct Segment {
  size_t n_bytes;
  std::vector<bool> has_pages;  // per unit; false also for a unit that was decommitted around blocks in use
};

// Never destroyed: tensors may be freed after static objects.
auto& segments = *new std::map<char*, Segment>;
auto& idle = *new ByAddress;  // free ranges, coalesced within a segment
auto& by_size = *new BySize;  // the same ranges

std::atomic<int64_t> with_pages = 0;  // bytes of all committed units

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Whether the system gives huge pages (of one unit) on request only. Elsewhere all mappings get them, or none.
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

// Whether uncommitted addresses count against a limit of the process or the system (vm.overcommit_memory).
bool addresses_are_limited() {
  return is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA) || first_line("/proc/sys/vm/overcommit_memory") == "2";
}

std::pair<char* const, Segment>& segment_of(char* address) { return *std::prev(segments.upper_bound(address)); }

// Calls `function` with a reference to `has_pages` of each unit from `begin` to `end`.
template <typename Function>
void for_each_unit(char* begin, char* end, const Function& function) {
  auto& [start, segment] = segment_of(begin);
  const auto last = static_cast<size_t>(aligned_up(end, kUnit) - start) / kUnit;
  for (auto unit = static_cast<size_t>(begin - start) / kUnit; unit < last; ++unit) function(segment.has_pages[unit]);
}

void insert_idle(char* begin, size_t n_bytes, Entry entry) {
  entry.by_address.key() = begin;
  entry.by_address.mapped() = n_bytes;
  entry.by_size.value() = {n_bytes, begin};
  idle.insert(std::move(entry.by_address));
  by_size.insert(std::move(entry.by_size));
}

Entry extract_idle(char* begin, size_t n_bytes) { return {idle.extract(begin), by_size.extract({n_bytes, begin})}; }

// Returns the bytes outside of a free range that a block in that range would commit: units are committed whole.
int64_t bytes_beside(char* block, size_t n_bytes, char* end_of_range) {
  char *const first = aligned_down(block, kUnit), *const last = aligned_up(block + n_bytes, kUnit);
  int64_t n_beside = 0;
  if (bytes_without_pages(first, first + kUnit) > 0) n_beside += block - first;
  if (last > end_of_range && bytes_without_pages(last - kUnit, last) > 0) n_beside += last - end_of_range;
  return n_beside;
}

// Maps a segment without committing pages. Returns false if the address space is exhausted.
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

}  // namespace

size_t rounded_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }

char* aligned_up(char* address, size_t unit) {
  return reinterpret_cast<char*>(rounded_up(reinterpret_cast<uintptr_t>(address), unit));
}

char* aligned_down(char* address, size_t unit) {
  return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(address) / unit * unit);
}

int64_t bytes_with_pages() { return with_pages; }

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

void discard(char* begin, char* end, bool by_page) {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  const size_t step = by_page ? page : kUnit;
  begin = aligned_up(begin, step);
  end = aligned_down(end, step);
  if (end > begin && madvise(begin, static_cast<size_t>(end - begin), MADV_DONTNEED) == 0) {
    set_has_pages(begin, end, false);
  }
}

void discard_uncounted(char* begin, char* end) {
  if (bytes_without_pages(begin, end) == 0) return;
  for (char* unit = aligned_down(begin, kUnit); unit < end; unit += kUnit) {
    if (bytes_without_pages(unit, unit + kUnit) == 0) continue;
    discard(std::max(begin, unit), std::min(end, unit + kUnit), true);
  }
}

int64_t bytes_of_idle_units() {
  int64_t n_bytes = 0;
  for (const auto& [begin, size] : idle) {
    char *const first = aligned_up(begin, kUnit), *const last = aligned_down(begin + size, kUnit);
    if (last > first) n_bytes += last - first - bytes_without_pages(first, last);
  }
  return n_bytes;
}

void discard_idle(int64_t n_bytes) {
  for (auto range = idle.rbegin(); range != idle.rend() && n_bytes > 0; ++range) {
    char* const begin = range->first;
    const auto& [start, segment] = segment_of(begin);
    for (char* end = aligned_down(begin + range->second, kUnit); end >= begin + kUnit && n_bytes > 0; end -= kUnit) {
      if (!segment.has_pages[static_cast<size_t>(end - start) / kUnit - 1]) continue;
      discard(end - kUnit, end, false);
      n_bytes -= kUnit;
    }
  }
}

Entry new_entry() {
  ByAddress address{{nullptr, 0}};
  BySize size{{0, nullptr}};
  return {address.extract(address.begin()), size.extract(size.begin())};
}

Entry take_idle(char* begin, size_t n_bytes, Entry of_front, Entry of_rest) {
  const auto [first, found] = *std::prev(idle.upper_bound(begin));
  char *const end = begin + n_bytes, *const last = first + found;
  Entry entry = extract_idle(first, found);
  if (begin > first) insert_idle(first, static_cast<size_t>(begin - first), std::move(of_front));
  if (last > end) insert_idle(end, static_cast<size_t>(last - end), std::move(of_rest));
  return entry;
}

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

bool add_segment(size_t request) {
  const size_t least = rounded_up(request, kUnit), usual = addresses_are_limited() ? kSegmentOfLimited : kSegment;
  return (least < usual && map_segment(usual, MAP_NORESERVE)) || map_segment(least, 0);
}

void drop_if_unused(char* begin, size_t n_bytes) {
  const auto segment = segments.find(begin);
  if (segment == segments.end() || segment->second.n_bytes != n_bytes) return;
  const auto& has_pages = segment->second.has_pages;
  if (std::find(has_pages.begin(), has_pages.end(), true) != has_pages.end()) return;
  extract_idle(begin, n_bytes);
  segments.erase(segment);
  munmap(begin, n_bytes);
}

void discard_all(bool by_page) {
  for (auto range = idle.begin(); range != idle.end();) {
    const auto [begin, n_bytes] = *range++;  // advanced first, because the range may be dropped
    discard(begin, begin + n_bytes, by_page);
    drop_if_unused(begin, n_bytes);
  }
}

char* find_idle(size_t n_bytes) {
  char* best = nullptr;
  auto least = std::make_pair(std::numeric_limits<int64_t>::max(), std::numeric_limits<int64_t>::max());
  const auto consider = [&](char* place, char* end_of_range) {
    const int64_t to_come = bytes_without_pages(place, place + n_bytes);
    if (to_come > least.first) return;
    const auto cost = std::make_pair(to_come, to_come > 0 ? bytes_beside(place, n_bytes, end_of_range) : 0);
    if (cost < least) best = place, least = cost;
  };
  for (auto range = by_size.lower_bound({n_bytes, nullptr}); range != by_size.end() && least.first > 0; ++range) {
    char *const begin = range->second, *const end = begin + range->first, *const next_unit = aligned_up(begin, kUnit);
    consider(begin, end);
    if (next_unit > begin && next_unit + n_bytes <= end && bytes_without_pages(begin, begin + 1) > 0) {
      consider(next_unit, end);
    }
  }
  return best;
}

}  // namespace igfast
