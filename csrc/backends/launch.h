// The launchers that families of ops are written in, of the backend that this object is for:
//
//   for_each_block<C>(draw, sink, key, num_chains, dim, first_block, stream, place)        draws of all blocks into the sink
//   for_each_element<T>(sink, num_chains, dim, place)                                      the sink without draws
//   for_each_chain(body, num_chains, grain, scratch_bytes, workspace, place)               body.run(chain, scratch)
//   scale_gradients<T>(params)                                                             params.segment_sums, params.grad_scales
//
// A family is a header of this folder's `families`, compiled into an object of its own for every instruction set and for CUDA.
#pragma once

#include "floating_point.h"

#if defined(__CUDACC__)
#include "cuda_launch.h"
#else
#include "cpu_launch.h"
#endif
