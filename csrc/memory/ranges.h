// The host pool's ranges of addresses: which are free, and which are committed. Callers hold the mutex of
// csrc/memory/pool.cpp.
//
// The pool exists because of two costs of the C library. glibc before 2.38 loses a few bytes at every aligned block, so
// its heap grows to several times the memory in use (glibc bug 14581). With other C libraries, fresh pages still cost
// time: freed blocks return to the system, and the kernel zeroes each page at the next use.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <utility>

namespace igfast {

// Pages are committed and decommitted in units of a huge page of x86-64 and most other processors.
constexpr size_t kUnit = 1 << 21;

using ByAddress = std::map<char*, size_t>;
using BySize = std::set<std::pair<size_t, char*>>;

// The nodes that list one free range. A block in use holds its nodes, so that freeing the block allocates nothing.
struct Entry {
  ByAddress::node_type by_address;
  BySize::node_type by_size;
};

Entry new_entry();

size_t rounded_up(size_t n, size_t unit);
char* aligned_up(char* address, size_t unit);
char* aligned_down(char* address, size_t unit);

// Returns the best fit for a block among the free ranges, or null. Best is to commit the fewest bytes, then the fewest
// bytes outside of the range (units are committed whole), then the smallest range.
char* find_idle(size_t n_bytes);

// Adds a segment for a request. A segment of just the request's size is mapped without MAP_NORESERVE, so that the
// kernel may refuse it.
bool add_segment(size_t request);

// Takes a block out of a free range, and returns the range's Entry. The caller passes entries for the rest of the range
// before and after the block, so that nothing can fail.
Entry take_idle(char* begin, size_t n_bytes, Entry of_front, Entry of_rest);

// Frees a range, coalesces it with its free neighbours, and returns the resulting range.
std::pair<char*, char*> make_idle(char* begin, char* end, Entry entry);

int64_t bytes_with_pages();                              // of all committed units
int64_t bytes_without_pages(char* begin, char* end);     // of the uncommitted units in between
void set_has_pages(char* begin, char* end, bool value);  // only records what is committed
int64_t bytes_of_idle_units();                           // of the committed units that lie in free ranges

// Decommits the whole units of a free range or, with `by_page`, also pages of units that are partly in use. Single
// pages split huge pages, so `by_page` is for when no attribution runs. A unit decommitted in part does not count as
// committed. If the next call commits that unit again, all of the unit counts against that call's budget.
void discard(char* begin, char* end, bool by_page);

// Decommits the pages of a free range in units that do not count as committed. Such pages belonged to blocks that
// outlived their call, and their huge pages are split already.
void discard_uncounted(char* begin, char* end);

// Decommits free units, the highest addresses first, until `n_bytes` are decommitted or none is left.
void discard_idle(int64_t n_bytes);

// Decommits everything that is free (see `discard` for `by_page`), and unmaps segments that are entirely free.
void discard_all(bool by_page);

// Unmaps the segment that a free range covers entirely, if none of its units is committed.
void drop_if_unused(char* begin, size_t n_bytes);

}  // namespace igfast
