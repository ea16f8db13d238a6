// One function pointer per line of ops.def: what a backend hands out.
#pragma once

#include "activations.h"
#include "clusters.h"
#include "dynamics.h"
#include "ising.h"
#include "langevin.h"
#include "metropolis.h"
#include "potts.h"
#include "probes.h"
#include "proposals.h"
#include "random.h"
#include "rbm.h"
#include "swaps.h"

namespace ebm {

struct OpTable {
    const char* target;
#define EBM_OP(name, Params) Status (*name)(const Params&);
#include "ops.def"
#undef EBM_OP
};

}  // namespace ebm
