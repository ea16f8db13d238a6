// The contract between bindings and backends: plain data, nothing of Python, nothing of a device.
#pragma once

#include <cstdint>

namespace ebm {

enum class Dtype : int32_t { float32, float64, bfloat16, float16, int8, uint8, int32, uint32, int64 };  // bool is uint8

// Where a call runs. A CPU call runs at once on borrowed threads; a CUDA call is put on `stream`.
struct Place {
    int32_t device_index;
    void* stream;
};

// nullptr, or what went wrong.
using Status = const char*;

}  // namespace ebm
