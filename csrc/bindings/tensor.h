// Python arrays to plain pointers, checked. Anything with the DLPack C exchange API (torch >= 2.11) is read through it; older
// torch tensors through data_ptr() and friends.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "../backends/dispatch.h"
#include "../ops/types.h"

namespace ebm {

namespace py = pybind11;

struct TensorView {
    void* data;
    Dtype dtype;
    bool is_cuda;
    int32_t device_index;
    int64_t num_chains;  // first dimension
    int64_t dim;         // product of the others
    void* stream;        // CUDA: the caller's current stream

    int64_t numel() const { return num_chains * dim; }
};

// Reads `array`; TypeError / ValueError name `op` and `argument`. Only contiguous tensors on the CPU or a CUDA device pass.
TensorView view(const py::handle& array, const char* op, const char* argument);

// TypeError unless `tensor` is of float32, float64, bfloat16 or float16.
void require_floating(const TensorView& tensor, const char* op, const char* argument);

// Seed, step and first chain of a key on the same device as `like`.
const int64_t* key_pointer(const py::handle& key, const TensorView& like, const char* op);

// The data of `array`, which must have `dtype`, `numel` elements (kAnySize: any number), and lie where `like` does.
constexpr int64_t kAnySize = -1;
void* data_of(const py::handle& array, Dtype dtype, int64_t numel, const TensorView& like, const char* op, const char* argument);

template <class T>
T* data_of(const py::handle& array, Dtype dtype, int64_t numel, const TensorView& like, const char* op, const char* argument) {
    return static_cast<T*>(data_of(array, dtype, numel, like, op, argument));
}

// The same; null for None.
template <class T>
T* optional_data_of(const py::handle& array, Dtype dtype, int64_t numel, const TensorView& like, const char* op, const char* argument) {
    return array.is_none() ? nullptr : data_of<T>(array, dtype, numel, like, op, argument);
}

// `other` must have the dtype, shape and device of `like`.
void check_same(const TensorView& other, const TensorView& like, const char* op, const char* argument);

const OpTable& table_of(const TensorView& tensor, const char* op);

inline Place place_of(const TensorView& tensor) { return {tensor.device_index, tensor.stream}; }

// RuntimeError if `status` says so. Call with the GIL held.
void check_status(Status status, const char* op);

// Runs an op without the GIL, on the device of `like`; nothing if `like` is empty.
template <class Params>
void call(Status (*OpTable::*op)(const Params&), const Params& p, const TensorView& like, const char* name) {
    if (like.numel() == 0) return;
    const OpTable& table = table_of(like, name);
    Status status;
    {
        py::gil_scoped_release release;
        status = (table.*op)(p);
    }
    check_status(status, name);
}

}  // namespace ebm
