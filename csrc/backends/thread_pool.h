// Threads of CPU backends: torch's own pool where torch is loaded, a small pool of ours where it is not or after a fork.
#pragma once

#include <cstdint>

namespace ebm {

using RangeFn = void (*)(int64_t begin, int64_t end, void* context);

// Calls fn on disjoint ranges that cover [0, size), none shorter than `grain` but the last. Results must not depend on the cut.
void parallel_for(int64_t size, int64_t grain, RangeFn fn, void* context);

void set_num_threads(int num_threads);  // 0: follow torch
int get_num_threads();
const char* thread_pool_name();  // "torch" or "native", by what the next call would use

}  // namespace ebm
