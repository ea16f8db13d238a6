// Restricted Boltzmann machines.
#include "tensor.h"

namespace ebm {
namespace {

void sigmoid_bernoulli(const py::object& out, const py::object& logits, const py::object& bias, const py::object& key, float scale,
                       uint32_t stream) {
    const char* name = "sigmoid_bernoulli";
    TensorView x = view(logits, name, "logits");
    SigmoidBernoulliParams p{};
    p.logits = data_of<float>(logits, Dtype::float32, x.numel(), x, name, "logits");
    p.out = data_of<float>(out, Dtype::float32, x.numel(), x, name, "out");
    p.bias = data_of<float>(bias, Dtype::float32, x.dim, x, name, "bias");
    p.key = key_pointer(key, x, name);
    p.num_chains = x.num_chains;
    p.dim = x.dim;
    p.scale = scale;
    p.stream = stream;
    p.place = place_of(x);
    call(&OpTable::sigmoid_bernoulli, p, x, name);
}

void softplus_sum(const py::object& out, const py::object& logits, const py::object& bias, float scale) {
    const char* name = "softplus_sum";
    TensorView x = view(logits, name, "logits");
    SoftplusSumParams p{};
    p.logits = data_of<float>(logits, Dtype::float32, x.numel(), x, name, "logits");
    p.out = data_of<double>(out, Dtype::float64, x.num_chains, x, name, "out");
    p.bias = data_of<float>(bias, Dtype::float32, x.dim, x, name, "bias");
    p.num_chains = x.num_chains;
    p.dim = x.dim;
    p.scale = scale;
    p.place = place_of(x);
    call(&OpTable::softplus_sum, p, x, name);
}

void rbm_gwg(const py::object& states, const py::object& inputs, const py::object& means, const py::object& pulls,
             const py::object& balanced, const py::object& records, const py::object& weight, const py::object& visible_bias,
             const py::object& key, int64_t step, int64_t num_steps, float unit, int32_t balancing, uint32_t proposal_stream,
             uint32_t acceptance_stream) {
    const char* name = "rbm_gwg";
    TensorView x = view(states, name, "states"), h = view(inputs, name, "inputs");
    const int64_t n = x.num_chains;
    RbmGwgParams p{};
    p.states = data_of<float>(states, Dtype::float32, x.numel(), x, name, "states");
    p.inputs = data_of<int32_t>(inputs, Dtype::int32, n * h.dim, x, name, "inputs");
    p.means = data_of<float>(means, Dtype::float32, n * h.dim, x, name, "means");
    p.pulls = data_of<float>(pulls, Dtype::float32, x.numel(), x, name, "pulls");
    p.balanced = data_of<float>(balanced, Dtype::float32, 2 * x.numel(), x, name, "balanced");
    p.records = data_of<double>(records, Dtype::float64, n * kRbmRecord, x, name, "records");
    p.weight = data_of<int32_t>(weight, Dtype::int32, x.dim * h.dim, x, name, "weight");
    p.visible_bias = data_of<float>(visible_bias, Dtype::float32, x.dim, x, name, "visible_bias");
    p.key = key_pointer(key, x, name);
    p.num_chains = n;
    p.num_visible = x.dim;
    p.num_hidden = h.dim;
    p.step = step;
    p.num_steps = num_steps;
    p.unit = unit;
    p.balancing = static_cast<Balancing>(balancing);
    p.proposal_stream = proposal_stream;
    p.acceptance_stream = acceptance_stream;
    p.place = place_of(x);
    call(&OpTable::rbm_gwg, p, x, name);
}

int64_t tiled(int64_t units) { return (units + kRbmTile - 1) / kRbmTile * kRbmTile; }

template <class Params>
void set_workspace(Params& p, const py::object& workspace, const TensorView& x, const char* name) {
    p.place = place_of(x);
    if (workspace.is_none() && !x.is_cuda) return;
    p.workspace =
        data_of<uint8_t>(workspace, Dtype::uint8, p.num_chains * rbm_scratch_bytes(p.num_visible, p.num_hidden), x, name, "workspace");
}

void rbm_gibbs(const py::object& states, const py::object& num_flips, const py::object& weight, const py::object& transposed,
               const py::object& visible_bias, const py::object& hidden_bias, const py::object& key, int64_t num_hidden, int64_t num_steps,
               uint32_t hidden_stream, uint32_t visible_stream, const py::object& workspace) {
    const char* name = "rbm_gibbs";
    TensorView x = view(states, name, "states");
    RbmGibbsParams p{};
    p.states = data_of<float>(states, Dtype::float32, x.numel(), x, name, "states");
    p.num_flips = data_of<int64_t>(num_flips, Dtype::int64, x.num_chains, x, name, "num_flips");
    p.weight = data_of<float>(weight, Dtype::float32, x.dim * tiled(num_hidden), x, name, "weight");
    p.transposed = data_of<float>(transposed, Dtype::float32, num_hidden * tiled(x.dim), x, name, "transposed");
    p.visible_bias = data_of<float>(visible_bias, Dtype::float32, tiled(x.dim), x, name, "visible_bias");
    p.hidden_bias = data_of<float>(hidden_bias, Dtype::float32, tiled(num_hidden), x, name, "hidden_bias");
    p.key = key_pointer(key, x, name);
    p.num_chains = x.num_chains;
    p.num_visible = x.dim;
    p.num_hidden = num_hidden;
    p.num_steps = num_steps;
    p.hidden_stream = hidden_stream;
    p.visible_stream = visible_stream;
    set_workspace(p, workspace, x, name);
    call(&OpTable::rbm_gibbs, p, x, name);
}

void rbm_gwg_chains(const py::object& states, const py::object& inputs, const py::object& weight, const py::object& transposed,
                    const py::object& visible_bias, const py::object& key, const py::object& is_accepted, const py::object& acceptance,
                    const py::object& num_flips, int64_t num_steps, float unit, int32_t balancing, uint32_t proposal_stream,
                    uint32_t acceptance_stream, const py::object& workspace) {
    const char* name = "rbm_gwg_chains";
    TensorView x = view(states, name, "states"), h = view(inputs, name, "inputs");
    RbmGwgChainsParams p{};
    p.states = data_of<float>(states, Dtype::float32, x.numel(), x, name, "states");
    p.inputs = data_of<int32_t>(inputs, Dtype::int32, x.num_chains * h.dim, x, name, "inputs");
    p.weight = data_of<int32_t>(weight, Dtype::int32, x.dim * h.dim, x, name, "weight");
    p.transposed = data_of<float>(transposed, Dtype::float32, h.dim * tiled(x.dim), x, name, "transposed");
    p.visible_bias = data_of<float>(visible_bias, Dtype::float32, tiled(x.dim), x, name, "visible_bias");
    p.key = key_pointer(key, x, name);
    p.is_accepted = data_of<uint8_t>(is_accepted, Dtype::uint8, x.num_chains, x, name, "is_accepted");
    p.acceptance = data_of<double>(acceptance, Dtype::float64, x.num_chains, x, name, "acceptance");
    p.num_flips = data_of<int64_t>(num_flips, Dtype::int64, x.num_chains, x, name, "num_flips");
    p.num_chains = x.num_chains;
    p.num_visible = x.dim;
    p.num_hidden = h.dim;
    p.num_steps = num_steps;
    p.unit = unit;
    p.balancing = static_cast<Balancing>(balancing);
    p.proposal_stream = proposal_stream;
    p.acceptance_stream = acceptance_stream;
    set_workspace(p, workspace, x, name);
    call(&OpTable::rbm_gwg_chains, p, x, name);
}

}  // namespace

void register_rbm(py::module_& m) {
    m.attr("RBM_RECORD") = kRbmRecord;
    m.attr("RBM_CHUNK") = kRbmChunk;
    m.attr("RBM_TILE") = kRbmTile;
    m.def("rbm_scratch", &rbm_scratch_bytes, py::arg("num_visible"), py::arg("num_hidden"), "Bytes of scratch of a chain.");
    m.def("rbm_gibbs", &rbm_gibbs, py::arg("states"), py::arg("num_flips"), py::arg("weight"), py::arg("transposed"),
          py::arg("visible_bias"), py::arg("hidden_bias"), py::arg("key"), py::arg("num_hidden"), py::arg("num_steps"),
          py::arg("hidden_stream"), py::arg("visible_stream"), py::arg("workspace"));
    m.def("rbm_gwg_chains", &rbm_gwg_chains, py::arg("states"), py::arg("inputs"), py::arg("weight"), py::arg("transposed"),
          py::arg("visible_bias"), py::arg("key"), py::arg("is_accepted"), py::arg("acceptance"), py::arg("num_flips"),
          py::arg("num_steps"), py::arg("unit"), py::arg("balancing"), py::arg("proposal_stream"), py::arg("acceptance_stream"),
          py::arg("workspace"));
    m.def("sigmoid_bernoulli", &sigmoid_bernoulli, py::arg("out"), py::arg("logits"), py::arg("bias"), py::arg("key"), py::arg("scale"),
          py::arg("stream"));
    m.def("softplus_sum", &softplus_sum, py::arg("out"), py::arg("logits"), py::arg("bias"), py::arg("scale"));
    m.def("rbm_gwg", &rbm_gwg, py::arg("states"), py::arg("inputs"), py::arg("means"), py::arg("pulls"), py::arg("balanced"),
          py::arg("records"), py::arg("weight"), py::arg("visible_bias"), py::arg("key"), py::arg("step"), py::arg("num_steps"),
          py::arg("unit"), py::arg("balancing"), py::arg("proposal_stream"), py::arg("acceptance_stream"));
}

}  // namespace ebm
