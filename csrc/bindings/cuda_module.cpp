// ebmcore._cuda: hands the table of the CUDA backend to ebmcore._core. Importing it needs no driver.
#include <pybind11/pybind11.h>

#include <string>

#include "../ops/table.h"

namespace ebm {
namespace cuda {
extern const OpTable table;
Status problem();
}  // namespace cuda
}  // namespace ebm

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
    m.doc() = "CUDA ops of ebmcore. Private: use ebmcore.ops.";
    m.def("table", [] { return py::capsule(&ebm::cuda::table); });
    m.def(
        "problem",
        [] {
            ebm::Status status = ebm::cuda::problem();
            return std::string(status ? status : "");
        },
        "Why no kernel can run here; empty if one can.");
}
