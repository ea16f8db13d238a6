// Which table of ops a device gets.
#pragma once

#include "../ops/perceptron.h"
#include "../ops/table.h"

namespace ebm {

const OpTable& cpu_table();

// The instruction set of the CPU table: the best that both this build and this machine have, or a lower one.
const char* cpu_target();
Status set_cpu_target(const char* name);
int num_cpu_targets();  // built and runnable here, lowest first
const char* cpu_target_name(int index);

// How the CPU table makes products in bfloat16 fastest here. Asks the system for the tile registers when it is first called.
Bfloat16Products bfloat16_products();

// The table of the CUDA module, null until that module was imported.
const OpTable* cuda_table();
void set_cuda_table(const OpTable* table);

}  // namespace ebm
