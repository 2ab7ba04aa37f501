// A pool for the large CPU tensors of an attribution, and counts of its bytes. csrc/memory/ranges.h has its reasons.
#pragma once

#include <cstdint>

namespace igfast {

// Makes PyTorch allocate from the pool in the calling thread, until as many calls of leave_host_pool(). Returns false,
// without effect, if the user has replaced PyTorch's CPU allocator.
bool enter_host_pool();

// Undoes one enter_host_pool() of the calling thread. Returns how many are left in all threads.
int64_t leave_host_pool();

// Decommits all free pages but `kept` bytes of them.
void empty_host_pool(int64_t kept = 0);

// Counts bytes that were, or are to be, allocated past the pool; negative to count them no longer. Decommits as many
// free pages where the peak would rise otherwise.
void count_in_host_pool(int64_t n_bytes);

// Sends the calling thread's requests past the pool while `pause` is set, for memory that outlives the attribution.
// Returns the previous setting.
bool pause_host_pool(bool pause);

// Returns the committed bytes of the pool, in use or free, plus the bytes served by the C library. Blocks in units that
// were decommitted in part, while no attribution ran, do not count.
int64_t host_pool_bytes();

// Returns the highest host_pool_bytes() since the first user entered.
int64_t host_pool_peak();

// Returns the bytes of the blocks in use, without free pages, or their peak.
int64_t host_pool_bytes_in_use();
int64_t host_pool_peak_in_use();

// Returns host_pool_peak_in_use(), and restarts that peak at the bytes in use now.
int64_t restart_host_pool_peak();

// Sets how far requests of the calling thread may raise host_pool_bytes() before such a request fails; negative for no
// limit. Returns the previous limit.
int64_t set_host_pool_limit(int64_t n_bytes);

}  // namespace igfast
