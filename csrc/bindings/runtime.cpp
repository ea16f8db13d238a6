// What runs where: instruction sets, threads, the CUDA table.
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../backends/dispatch.h"
#include "../backends/thread_pool.h"
#include "tensor.h"

namespace ebm {

void register_runtime(py::module_& m) {
    m.attr("__version__") = EBMCORE_VERSION;
    m.def("cpu_target", [] { return std::string(cpu_target()); });
    m.def("cpu_targets", [] {
        std::vector<std::string> names;
        for (int i = 0; i < num_cpu_targets(); ++i) names.emplace_back(cpu_target_name(i));
        return names;
    });
    m.def(
        "set_cpu_target",
        [](const std::string& name) {
            if (Status status = set_cpu_target(name.c_str())) throw py::value_error("set_cpu_target: '" + name + "' is " + status);
        },
        py::arg("name"));
    m.def(
        "bfloat16_products", [] { return static_cast<int32_t>(bfloat16_products()); },
        "0: emulated, 1: AVX-512 BF16, 2: AMX; of the instruction set that is chosen.");
    m.def("get_num_threads", &get_num_threads);
    m.def("set_num_threads", &set_num_threads, py::arg("num_threads"));
    m.def("thread_pool", [] { return std::string(thread_pool_name()); });
    m.def(
        "set_cuda_table", [](const py::capsule& table) { set_cuda_table(static_cast<const OpTable*>(table.get_pointer())); },
        py::arg("table"));
}

}  // namespace ebm
