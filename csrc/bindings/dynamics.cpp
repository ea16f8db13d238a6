// Whole chains of continuous samplers on native energies.
#include "tensor.h"

namespace ebm {
namespace {

using DynamicsOp = Status (*OpTable::*)(const DynamicsParams&);

template <class T>
T named(const std::string& name, const char* what, std::initializer_list<std::pair<const char*, T>> list) {
    for (const auto& entry : list) {
        if (name == entry.first) return entry.second;
    }
    throw py::value_error(std::string("dynamics: no such ") + what + ": " + name);
}

EnergyKind energy_kind(const std::string& name) {
    return named<EnergyKind>(name, "energy",
                             {
                                 {"perceptron", EnergyKind::perceptron},
#define EBM_ENERGY(name, Functor) {#name, EnergyKind::name},
#include "../ops/energies.def"
#undef EBM_ENERGY
                             });
}

DynamicsOp dynamics_op(const std::string& name) {
    return named<DynamicsOp>(name, "kernel",
                             {{"langevin", &OpTable::langevin_dynamics},
                              {"mala", &OpTable::mala_dynamics},
                              {"hmc", &OpTable::hmc_dynamics},
                              {"kinetic_langevin", &OpTable::kinetic_langevin_dynamics},
                              {"random_walk", &OpTable::random_walk_dynamics}});
}

// (weights, transposed ones or nothing, biases, activations, their parameters, sign, how products in bfloat16 are made, tiles of the
// weights and of the transposed ones for these or nothing), sequences of one for each layer.
PerceptronParams perceptron(const py::tuple& network, const TensorView& x) {
    const char* name = "dynamics";
    const py::sequence weights = network[0], biases = network[1], activations = network[2], parameters = network[3];
    const int64_t num_layers = static_cast<int64_t>(py::len(weights));
    if (x.dtype != Dtype::float32) throw py::type_error("dynamics: x must be float32 for a perceptron");
    if (num_layers < 1 || num_layers > kMaxHiddenLayers + 1) throw py::value_error("dynamics: a perceptron has too many layers");
    PerceptronParams p{};
    p.num_hidden_layers = static_cast<int32_t>(num_layers - 1);
    p.sign = network[4].cast<float>();
    p.products = static_cast<Bfloat16Products>(network[10].cast<int32_t>());
    int64_t width = x.dim;
    for (int64_t l = 0; l < num_layers; ++l) {
        const py::object weight = weights[l], bias = biases[l];
        const TensorView w = view(weight, name, "weight");
        p.widths[l] = width;
        if (w.dim != width || (l + 1 == num_layers && w.num_chains != 1)) throw py::value_error("dynamics: shapes of weights do not fit");
        width = w.num_chains;
        p.weights[l] = data_of<const float>(weight, Dtype::float32, kAnySize, x, name, "weight");
        p.biases[l] = optional_data_of<const float>(bias, Dtype::float32, width, x, name, "bias");
        if (l + 1 == num_layers) break;
        const auto copy_of = [&](int index, Dtype dtype, int64_t numel, const char* argument) -> const void* {
            const py::sequence copies = network[static_cast<size_t>(index)];
            return py::len(copies) == 0 ? nullptr : data_of(copies[l], dtype, numel, x, name, argument);
        };
        const auto filled = [](int64_t size, int64_t multiple) { return (size + multiple - 1) / multiple * multiple; };
        const int64_t rows = w.num_chains, columns = w.dim, tiled = filled(rows, 32) * filled(columns, 32);
        p.transposed[l] = static_cast<const float*>(copy_of(5, Dtype::float32, rows * columns, "transposed"));
        p.panels[l] = static_cast<const float*>(copy_of(6, Dtype::float32, filled(rows, kPanelRows) * columns, "panels"));
        p.transposed_panels[l] =
            static_cast<const float*>(copy_of(7, Dtype::float32, filled(columns, kPanelRows) * rows, "transposed_panels"));
        p.tiles[l] = static_cast<const uint32_t*>(copy_of(8, Dtype::bfloat16, tiled, "tiles"));
        p.transposed_tiles[l] = static_cast<const uint32_t*>(copy_of(9, Dtype::bfloat16, tiled, "transposed_tiles"));
        p.activations[l] = static_cast<Activation>(activations[l].cast<int32_t>());
        p.parameters[l] = parameters[l].cast<float>();
    }
    return p;
}

// What a kernel does not use may be None; `constants` of a perceptron are the tuple that `perceptron` reads.
void dynamics(const std::string& kernel, const std::string& kind, const py::object& constants, int64_t num_components, const py::object& x,
              const py::object& momentum, const py::object& energies, const py::object& grad, const py::object& is_accepted,
              const py::object& acceptance, const py::object& num_diverged, const py::object& drift, const py::object& noise,
              const py::object& key, int64_t num_steps, int64_t num_leapfrog, double step_size, double noise_std, double clip_grad,
              double clamp_min, double clamp_max, double decay, double jitter, uint32_t proposal_stream, uint32_t acceptance_stream,
              uint32_t jitter_stream, const py::object& workspace) {
    const char* name = "dynamics";
    const TensorView states = view(x, name, "x");
    if (states.dtype != Dtype::float32 && states.dtype != Dtype::float64) throw py::type_error("dynamics: x must be float32 or float64");
    const auto data = [&](const py::object& array, int64_t numel, const char* argument) {
        return array.is_none() ? nullptr : data_of(array, states.dtype, numel, states, name, argument);
    };
    const int64_t n = states.num_chains, dim = states.dim;
    DynamicsParams p{};
    p.energy.dim = dim;
    p.energy.num_chains = n;
    p.energy.num_components = num_components;
    p.energy.kind = energy_kind(kind);
    if (p.energy.kind == EnergyKind::perceptron) {
        p.energy.perceptron = perceptron(constants, states);
    } else {
        p.energy.constants = data(constants, kAnySize, "constants");
    }
    p.x = states.data;
    p.momentum = data(momentum, n * dim, "momentum");
    p.energies = data(energies, n, "energies");
    p.grad = data(grad, n * dim, "grad");
    p.is_accepted = optional_data_of<uint8_t>(is_accepted, Dtype::uint8, n, states, name, "is_accepted");
    p.acceptance = optional_data_of<double>(acceptance, Dtype::float64, n, states, name, "acceptance");
    p.num_diverged = optional_data_of<int64_t>(num_diverged, Dtype::int64, n, states, name, "num_diverged");
    p.drift = data(drift, dim, "drift");
    p.noise = data(noise, dim, "noise");
    p.key = key_pointer(key, states, name);
    p.num_chains = n;
    p.num_steps = num_steps;
    p.num_leapfrog = num_leapfrog;
    p.step_size = step_size;
    p.noise_std = noise_std;
    p.clip_grad = clip_grad;
    p.clamp_min = clamp_min;
    p.clamp_max = clamp_max;
    p.decay = decay;
    p.jitter = jitter;
    p.proposal_stream = proposal_stream;
    p.acceptance_stream = acceptance_stream;
    p.jitter_stream = jitter_stream;
    if (states.is_cuda) p.workspace = data(workspace, n * dynamics_scratch(dim, num_components), "workspace");
    p.dtype = states.dtype;
    p.place = place_of(states);
    call(dynamics_op(kernel), p, states, name);
}

}  // namespace

void register_dynamics(py::module_& m) {
    m.def("dynamics_scratch", &dynamics_scratch, py::arg("dim"), py::arg("num_components"), "Numbers of scratch of a chain.");
    m.def("dynamics", &dynamics, py::arg("kernel"), py::arg("kind"), py::arg("constants"), py::arg("num_components"), py::arg("x"),
          py::arg("momentum"), py::arg("energies"), py::arg("grad"), py::arg("is_accepted"), py::arg("acceptance"), py::arg("num_diverged"),
          py::arg("drift"), py::arg("noise"), py::arg("key"), py::arg("num_steps"), py::arg("num_leapfrog"), py::arg("step_size"),
          py::arg("noise_std"), py::arg("clip_grad"), py::arg("clamp_min"), py::arg("clamp_max"), py::arg("decay"), py::arg("jitter"),
          py::arg("proposal_stream"), py::arg("acceptance_stream"), py::arg("jitter_stream"), py::arg("workspace"));
}

}  // namespace ebm
