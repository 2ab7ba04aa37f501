// Ranges of addresses of our own: which are idle, and which have pages. Its callers hold the lock of
// csrc/memory/pool.cpp.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <utility>

namespace igfast {

// Pages come and go in units of so many bytes: of a huge page of the x86-64, and of most other processors.
constexpr size_t kUnit = 1 << 21;

using ByAddress = std::map<char*, size_t>;
using BySize = std::set<std::pair<size_t, char*>>;

// Where a range is entered that nobody uses. Who takes one keeps an entry for when it is idle again.
struct Entry {
  ByAddress::node_type by_address;
  BySize::node_type by_size;
};

Entry new_entry();

size_t rounded_up(size_t n, size_t unit);
char* aligned_up(char* address, size_t unit);
char* aligned_down(char* address, size_t unit);

// Where so many idle bytes are: where the fewest have to get pages, and then, since units get them as a whole, where
// the least of these is beside the range; of such ranges in the smallest. Null if nowhere.
char* find_idle(size_t n_bytes);

// Adds a segment for a request. One of the request's own size is refused if the system thinks that it has not as much.
bool add_segment(size_t request);

// Takes bytes out of an idle range; entries for what is left of it before and behind are handed in, so that nothing can
// fail.
Entry take_idle(char* begin, size_t n_bytes, Entry of_front, Entry of_rest);

// Makes a range idle, one with its idle neighbours; returns the whole.
std::pair<char*, char*> make_idle(char* begin, char* end, Entry entry);

// Bytes of all units with pages; of those without between two addresses, and to say that they have them; of whole units
// with pages that nobody uses.
int64_t bytes_with_pages();
int64_t bytes_without_pages(char* begin, char* end);
void set_has_pages(char* begin, char* end, bool value);
int64_t bytes_of_idle_units();

// Returns pages between two addresses that nobody uses: whole units, or with `by_page` also those beside others in
// their unit, which splits a huge page and is not for while attributions run. A unit that comes back counts as a whole:
// the next call gets its budget beyond what is left of it here.
void discard(char* begin, char* end, bool by_page);

// Returns what pages there are between two addresses that nobody uses, in units that count as having none: of blocks
// that outlived the call that took them, whose huge pages are split already.
void discard_uncounted(char* begin, char* end);

// Returns units that nobody uses, the highest first, until so many bytes are free of them or there are no more.
void discard_idle(int64_t n_bytes);

// Returns all pages that nobody uses.
void discard_all(bool by_page);

// Returns the addresses of a segment that is idle as a whole, and has no pages.
void drop_if_unused(char* begin, size_t n_bytes);

}  // namespace igfast
