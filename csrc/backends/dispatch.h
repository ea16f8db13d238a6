// Which table of ops a device gets.
#pragma once

#include "../ops/table.h"

namespace ebm {

const OpTable& cpu_table();

// The instruction set of the CPU table: the best that both this build and this machine have, or a lower one.
const char* cpu_target();
Status set_cpu_target(const char* name);
int num_cpu_targets();  // built and runnable here, lowest first
const char* cpu_target_name(int index);

// The table of the CUDA module, null until that module was imported.
const OpTable* cuda_table();
void set_cuda_table(const OpTable* table);

}  // namespace ebm
