// Replica exchange.
#include <pybind11/stl.h>

#include <tuple>
#include <vector>

#include "tensor.h"

namespace ebm {
namespace {

// (rows, scales or None)
using Field = std::tuple<py::object, py::object>;

void swap_replicas(const std::vector<Field>& fields, const py::object& betas, const py::object& has_been_hottest,
                   const py::object& prob_sum, const py::object& num_swaps, const py::object& num_round_trips, const py::object& key,
                   uint32_t stream) {
    const char* name = "swap_replicas";
    const TensorView flags = view(has_been_hottest, name, "has_been_hottest");
    if (flags.dtype != Dtype::uint8) throw py::type_error("swap_replicas: has_been_hottest must be bool");
    const int64_t n = flags.num_chains, num_temperatures = flags.dim, num_pairs = num_temperatures - 1;
    if (num_pairs < 1) throw py::value_error("swap_replicas: there must be two temperatures or more");
    if (fields.empty() || fields.size() > kMaxSwapFields) throw py::value_error("swap_replicas: there must be 1 to 8 tensors of rows");
    SwapReplicasParams p{};
    for (const auto& [rows, scales] : fields) {
        const TensorView values = view(rows, name, "a tensor of rows");
        SwapField& field = p.fields[p.num_fields++];
        if (values.num_chains != n * num_temperatures)
            throw py::value_error("swap_replicas: a tensor of rows must have one for each replica");
        field.data = data_of(rows, values.dtype, values.numel(), flags, name, "a tensor of rows");
        field.scales = optional_data_of<const double>(scales, Dtype::float64, 2 * num_pairs, flags, name, "scales");
        field.row_size = values.dim;
        field.dtype = values.dtype;
        if (field.scales) require_floating(values, name, "a tensor of rows with scales");
    }
    if ((p.fields[0].dtype != Dtype::float32 && p.fields[0].dtype != Dtype::float64) || p.fields[0].row_size != 1)
        throw py::type_error("swap_replicas: energy must be float32 or float64, one number a row");
    p.betas = data_of<const double>(betas, Dtype::float64, num_temperatures, flags, name, "betas");
    p.has_been_hottest = static_cast<uint8_t*>(flags.data);
    p.prob_sum = data_of<double>(prob_sum, Dtype::float64, n * num_pairs, flags, name, "prob_sum");
    p.num_swaps = data_of<int64_t>(num_swaps, Dtype::int64, n * num_pairs, flags, name, "num_swaps");
    p.num_round_trips = data_of<int64_t>(num_round_trips, Dtype::int64, n, flags, name, "num_round_trips");
    p.key = key_pointer(key, flags, name);
    p.num_chains = n;
    p.num_temperatures = num_temperatures;
    p.stream = stream;
    p.place = place_of(flags);
    call(&OpTable::swap_replicas, p, flags, name);
}

}  // namespace

void register_swaps(py::module_& m) {
    m.def("swap_replicas", &swap_replicas, py::arg("fields"), py::arg("betas"), py::arg("has_been_hottest"), py::arg("prob_sum"),
          py::arg("num_swaps"), py::arg("num_round_trips"), py::arg("key"), py::arg("stream"));
}

}  // namespace ebm
