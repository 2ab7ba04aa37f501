// A pool of the CPU memory that PyTorch frees, while an attribution runs, and what all of it comes to.
#pragma once

#include <cstdint>

namespace igfast {

// Makes PyTorch allocate from the pool in the calling thread, until that leaves it as often. False, and nothing
// happens, if PyTorch's CPU allocator has been replaced. Leaving returns how many users are left.
bool enter_host_pool();
int64_t leave_host_pool();

// Returns pages that nobody uses to the system, all but so many bytes of them.
void empty_host_pool(int64_t kept = 0);

// Whether the calling thread's requests go to the allocator before the pool, for what outlives the attribution. Returns
// what it replaces.
bool pause_host_pool(bool pause);

// Bytes of the pool's pages, in use or not, and of what it got from the C library. Not in it are blocks whose
// neighbours' pages went back when no attribution ran.
int64_t host_pool_bytes();

// The most of that since the pool was entered by its first user.
int64_t host_pool_peak();

// The same of the blocks in use: what there has to be memory for, while others stay where it is cheap.
int64_t host_pool_bytes_in_use();
int64_t host_pool_peak_in_use();

// Begins the peak of blocks in use anew, and returns it as it was.
int64_t restart_host_pool_peak();

// What host_pool_bytes() may come to by requests of the calling thread, which fail beyond it; negative for no limit.
// Returns the limit that it replaces.
int64_t set_host_pool_limit(int64_t n_bytes);

}  // namespace igfast
