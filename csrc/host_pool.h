// The pool of CPU memory; see host_pool.cpp.
#pragma once

namespace igfast {

// Makes PyTorch allocate from the pool until as many calls of leave_host_pool; any thread may. False, and nothing
// happens, if PyTorch's CPU allocator has been replaced.
bool enter_host_pool();
void leave_host_pool();

// Frees the blocks that nobody uses.
void empty_host_pool();

}  // namespace igfast
