// A pool of the CPU blocks that PyTorch frees, while an attribution runs, and what all of them come to.
#pragma once

#include <cstdint>

namespace igfast {

// Makes PyTorch allocate from the pool until as many calls of leave_host_pool; any thread may. False, and nothing
// happens, if PyTorch's CPU allocator has been replaced.
bool enter_host_pool();
void leave_host_pool();

// Frees the blocks that nobody uses. The pages of blocks of so many bytes go back to the system; what becomes of those
// of smaller blocks is left to the C library.
void empty_host_pool(int64_t returned_from = 0);

// Lets requests of the calling thread take blocks that are up to so many times as large: those of a larger chunk for a
// smaller one.
void set_host_pool_slack(double times);

// Bytes of the pool's blocks that are resident, those in use and those that nobody uses.
int64_t host_pool_bytes();

// The most of that since the pool was entered by its first user.
int64_t host_pool_peak();

// The same of the blocks in use: what there has to be memory for, while others stay where it is cheap.
int64_t host_pool_bytes_in_use();
int64_t host_pool_peak_in_use();

// What host_pool_bytes() may come to by requests of the calling thread, which fail beyond it; negative for no limit.
// Returns the limit that it replaces.
int64_t set_host_pool_limit(int64_t n_bytes);

}  // namespace igfast
