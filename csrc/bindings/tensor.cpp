#include "tensor.h"

namespace ebm {
namespace {

// The stable C ABI of DLPack 1.x, as far as it is used (dmlc/dlpack, include/dlpack/dlpack.h).
struct DLTensor {
    void* data;
    int32_t device_type;
    int32_t device_id;
    int32_t ndim;
    struct {
        uint8_t code, bits;
        uint16_t lanes;
    } dtype;
    int64_t* shape;
    int64_t* strides;
    uint64_t byte_offset;
};

struct DLPackExchangeApi {
    struct {
        struct {
            uint32_t major, minor;
        } version;
        void* previous;
    } header;
    void* managed_tensor_allocator;
    void* managed_tensor_from_py_object;
    void* managed_tensor_to_py_object;
    int (*dltensor_from_py_object)(void* object, DLTensor* out);
    int (*current_work_stream)(int32_t device_type, int32_t device_id, void** out);
};

constexpr int32_t kDlCpu = 1, kDlCuda = 2;

const DLPackExchangeApi* exchange_api(PyTypeObject* type) {
    // One entry is enough: a process hands in tensors of one type nearly always.
    thread_local PyTypeObject* known_type = nullptr;
    thread_local const DLPackExchangeApi* known_api = nullptr;
    if (type == known_type) return known_api;
    py::object capsule = py::getattr(py::handle(reinterpret_cast<PyObject*>(type)), "__dlpack_c_exchange_api__", py::none());
    const DLPackExchangeApi* api = nullptr;
    if (PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) {
        api = static_cast<const DLPackExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
        if (api->header.version.major != 1 || !api->dltensor_from_py_object || !api->current_work_stream) api = nullptr;
    }
    known_type = type;
    known_api = api;
    return api;
}

std::string prefix(const char* op, const char* argument) { return std::string(op) + ": " + argument + " "; }

[[noreturn]] void fail_type(const char* op, const char* argument, const std::string& what) {
    throw py::type_error(prefix(op, argument) + what);
}

[[noreturn]] void fail_value(const char* op, const char* argument, const std::string& what) {
    throw py::value_error(prefix(op, argument) + what);
}

std::string shape_text(const int64_t* shape, int ndim) {
    std::string text = "(";
    for (int i = 0; i < ndim; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
    return text + (ndim == 1 ? ",)" : ")");
}

Dtype dtype_of(int code, int bits, const char* op, const char* argument) {
    constexpr int kInt = 0, kUint = 1, kFloat = 2, kBfloat = 4, kBool = 6;
    if (code == kFloat && bits == 32) return Dtype::float32;
    if (code == kFloat && bits == 64) return Dtype::float64;
    if (code == kFloat && bits == 16) return Dtype::float16;
    if (code == kBfloat && bits == 16) return Dtype::bfloat16;
    if (code == kInt && bits == 8) return Dtype::int8;
    if ((code == kUint || code == kBool) && bits == 8) return Dtype::uint8;
    if (code == kInt && bits == 32) return Dtype::int32;
    if (code == kUint && bits == 32) return Dtype::uint32;
    if (code == kInt && bits == 64) return Dtype::int64;
    fail_type(op, argument, "has a dtype that no native op takes");
}

DLTensor read_attributes(const py::handle& tensor, int64_t (&shape)[64], int64_t (&strides)[64], const char* op, const char* argument) {
    if (!py::hasattr(tensor, "data_ptr") || !py::hasattr(tensor, "stride")) fail_type(op, argument, "must be a torch.Tensor");
    DLTensor out{};
    out.data = reinterpret_cast<void*>(tensor.attr("data_ptr")().cast<uintptr_t>());
    std::string device = py::str(tensor.attr("device").attr("type"));
    out.device_type = device == "cuda" ? kDlCuda : device == "cpu" ? kDlCpu : 0;
    py::object index = tensor.attr("device").attr("index");
    out.device_id = index.is_none() ? 0 : index.cast<int32_t>();
    out.ndim = tensor.attr("dim")().cast<int32_t>();
    py::sequence sizes = tensor.attr("shape"), steps = tensor.attr("stride")();
    for (int i = 0; i < out.ndim && i < 64; ++i) {
        shape[i] = sizes[static_cast<size_t>(i)].cast<int64_t>();
        strides[i] = steps[static_cast<size_t>(i)].cast<int64_t>();
    }
    std::string dtype = py::str(tensor.attr("dtype"));
    uint8_t bits = static_cast<uint8_t>(8 * tensor.attr("element_size")().cast<int>());
    out.dtype.code = dtype == "torch.bfloat16"                 ? 4
                     : dtype.find("uint") != std::string::npos ? 1
                     : dtype.find("int") != std::string::npos  ? 0
                     : dtype == "torch.bool"                   ? 6
                                                               : 2;
    out.dtype.bits = bits;
    out.shape = shape;
    out.strides = strides;
    return out;
}

DLTensor read(const py::handle& tensor, const DLPackExchangeApi* api, int64_t (&shape)[64], int64_t (&strides)[64], const char* op,
              const char* argument) {
    if (!api) return read_attributes(tensor, shape, strides, op, argument);
    DLTensor out{};
    if (api->dltensor_from_py_object(tensor.ptr(), &out) != 0) throw py::error_already_set();
    return out;
}

void* current_stream(const DLPackExchangeApi* api, int32_t device) {
    if (api) {
        void* stream = nullptr;
        if (api->current_work_stream(kDlCuda, device, &stream) != 0) throw py::error_already_set();
        return stream;
    }
    py::object stream = py::module_::import("torch").attr("cuda").attr("current_stream")(device).attr("cuda_stream");
    return reinterpret_cast<void*>(stream.cast<uintptr_t>());
}

}  // namespace

TensorView view(const py::handle& array, const char* op, const char* argument) {
    const DLPackExchangeApi* api = exchange_api(Py_TYPE(array.ptr()));
    int64_t shape[64], strides[64];
    DLTensor t = read(array, api, shape, strides, op, argument);
    if (t.device_type != kDlCpu && t.device_type != kDlCuda) fail_value(op, argument, "must be on the CPU or a CUDA device");
    if (t.ndim < 1) fail_value(op, argument, "must have shape (num_chains, *event), got a 0-d tensor");
    int64_t numel = 1, step = 1;
    bool contiguous = true;
    for (int i = t.ndim - 1; i >= 0; --i) {
        if (t.strides && t.shape[i] != 1 && t.strides[i] != step) contiguous = false;
        step *= t.shape[i];
        numel *= t.shape[i];
    }
    if (!contiguous && numel > 0) fail_value(op, argument, "must be contiguous, got shape " + shape_text(t.shape, t.ndim));
    TensorView out{};
    out.data = static_cast<char*>(t.data) + t.byte_offset;
    out.dtype = dtype_of(t.dtype.code, t.dtype.bits, op, argument);
    out.is_cuda = t.device_type == kDlCuda;
    out.device_index = t.device_id;
    out.num_chains = t.shape[0];
    out.dim = 1;
    for (int i = 1; i < t.ndim; ++i) out.dim *= t.shape[i];
    out.stream = out.is_cuda ? current_stream(api, t.device_id) : nullptr;
    return out;
}

void require_floating(const TensorView& tensor, const char* op, const char* argument) {
    if (tensor.dtype > Dtype::float16) fail_type(op, argument, "has a dtype that this op does not take: it must be floating");
}

const int64_t* key_pointer(const py::handle& key, const TensorView& like, const char* op) {
    TensorView k = view(key, op, "key");
    if (k.dtype != Dtype::int64) fail_type(op, "key", "must be int64");
    if (k.numel() != 3) fail_value(op, "key", "must hold [seed, step, first_chain], got " + std::to_string(k.numel()) + " elements");
    if (k.is_cuda != like.is_cuda || k.device_index != like.device_index) fail_value(op, "key", "must be on the device of the chains");
    const int64_t* numbers = static_cast<const int64_t*>(k.data);
    // A key on a card is not read: that would wait for it.
    if (!k.is_cuda && (numbers[1] < 0 || numbers[1] >> 48 != 0)) fail_value(op, "key", "must have 0 <= step < 2**48");
    if (!k.is_cuda && (numbers[2] < 0 || numbers[2] > (int64_t{1} << 40) - like.num_chains))
        fail_value(op, "key", "must have first_chain >= 0 and first_chain + num_chains <= 2**40");
    return numbers;
}

void* data_of(const py::handle& array, Dtype dtype, int64_t numel, const TensorView& like, const char* op, const char* argument) {
    TensorView v = view(array, op, argument);
    if (v.dtype != dtype) fail_type(op, argument, "has a dtype that this op does not take there");
    if (numel != kAnySize && v.numel() != numel)
        fail_value(op, argument, "must have " + std::to_string(numel) + " elements, got " + std::to_string(v.numel()));
    if (v.is_cuda != like.is_cuda || v.device_index != like.device_index) fail_value(op, argument, "must be on the device of the chains");
    return v.data;
}

void check_same(const TensorView& other, const TensorView& like, const char* op, const char* argument) {
    if (other.dtype != like.dtype) fail_type(op, argument, "must have the dtype of x");
    if (other.is_cuda != like.is_cuda || other.device_index != like.device_index) fail_value(op, argument, "must be on the device of x");
    if (other.num_chains != like.num_chains || other.dim != like.dim) fail_value(op, argument, "must have the shape of x");
}

const OpTable& table_of(const TensorView& tensor, const char* op) {
    if (!tensor.is_cuda) return cpu_table();
    if (!cuda_table()) throw std::runtime_error(std::string(op) + ": the CUDA module is not loaded");
    return *cuda_table();
}

void check_status(Status status, const char* op) {
    if (status) throw std::runtime_error(std::string(op) + ": " + status);
}

}  // namespace ebm
