// Runs the maths of the CUDA kernels, on single lanes, on the host, and writes the results: see test_single_lane.py.
#include <cstdio>
#include <vector>

#include "../../csrc/kernels/activations.h"
#include "../../csrc/kernels/block.h"
#include "../../csrc/kernels/dynamics.h"
#include "../../csrc/kernels/ising.h"
#include "../../csrc/kernels/langevin.h"
#include "../../csrc/kernels/metropolis.h"
#include "../../csrc/kernels/potts.h"
#include "../../csrc/kernels/probes.h"
#include "../../csrc/kernels/rbm_chains.h"
#include "../../csrc/kernels/swaps.h"

using namespace ebm;

const int64_t key[3] = {0x0123456789abcdef, (int64_t{5} << 32) | 7, (int64_t{3} << 32) + 9};
const int64_t num_chains = 5;

template <class C, class Draw, class Sink>
void run(const Draw& draw, const Sink& sink, int64_t dim, uint32_t stream) {
    int64_t blocks = (dim + kBlockSize<C> - 1) / kBlockSize<C>;
    for (int64_t i = 0; i < num_chains * blocks; ++i) run_block<C>(draw, sink, key, i / blocks, i % blocks, dim, 0, stream);
}

template <class T>
void emit(const std::vector<T>& values) {
    fwrite(values.data(), sizeof(T), values.size(), stdout);
}

template <class C>
std::vector<C> normals(int64_t dim, uint32_t stream) {
    std::vector<C> out(num_chains * dim);
    run<C>(DrawNormal{}, StoreSink<C>{out.data(), dim}, dim, stream);
    return out;
}

template <class T>
void langevin(int64_t dim) {
    using C = Compute<T>;
    std::vector<C> wide_x = normals<C>(dim, 3), wide_grad = normals<C>(dim, 4);
    std::vector<T> x(wide_x.size()), grad(wide_x.size()), out(wide_x.size());
    for (size_t i = 0; i < x.size(); ++i) narrow(&x[i], wide_x[i]), narrow(&grad[i], wide_grad[i]);
    int64_t segments = (dim + kNormSegment - 1) / kNormSegment;
    std::vector<double> sums(num_chains * segments), scales(num_chains);
    LangevinStepParams p{};
    p.out = out.data(), p.x = x.data(), p.grad = grad.data(), p.key = key, p.grad_scales = scales.data();
    p.num_chains = num_chains, p.dim = dim, p.step_size = 0.01, p.noise_std = 0.3, p.stream = 1;
    p.clip_grad = 0.5, p.clip_grad_norm = 2.0, p.clamp_min = -1.0, p.clamp_max = 1.5;
    for (int64_t i = 0; i < num_chains * segments; ++i) {
        int64_t start = i % segments * kNormSegment, size = dim - start < kNormSegment ? dim - start : kNormSegment;
        double lanes[kNormLanes];
        for (int lane = 0; lane < kNormLanes; ++lane) {
            double sum[1];
            add_squares<1>(grad.data() + i / segments * dim + start, size, lane, sum);
            lanes[lane] = sum[0];
        }
        sums[i] = add_tree(lanes);
    }
    for (int64_t i = 0; i < num_chains; ++i) scales[i] = grad_scale(sums.data() + i * segments, segments, p.clip_grad_norm);
    run<C>(DrawNormal{}, LangevinSink<T, true, true>(p), dim, p.stream);
    emit(out);
}

// A ring of n sites; entries of site i: to its lower neighbour by number, then to the higher one.
struct RingGraph {
    std::vector<int64_t> offsets;
    std::vector<int32_t> neighbours, couplings, fields;
    const double unit = 1.0 / 1024;

    RingGraph(int64_t n, int64_t fields_per_site) {
        for (int64_t i = 0; i < n; ++i) {
            offsets.push_back(2 * i);
            int32_t before = static_cast<int32_t>((i + n - 1) % n), after = static_cast<int32_t>((i + 1) % n);
            for (int32_t j : {before < after ? before : after, before < after ? after : before}) {
                neighbours.push_back(j);
                int32_t edge = j == (i + 1) % n ? static_cast<int32_t>(i) : j;  // edge k joins k and k + 1
                couplings.push_back(edge * 37 % 1500 - 700);
            }
            for (int64_t c = 0; c < fields_per_site; ++c) fields.push_back(static_cast<int32_t>((i * 13 + c * 29) % 900) - 450);
        }
        offsets.push_back(2 * n);
        fields.resize(fields.size() + 16);
    }
};

void ising(int64_t n) {
    RingGraph ring(n, 1);
    IsingModel m{ring.offsets.data(), ring.neighbours.data(), ring.couplings.data(), ring.fields.data(), &ring.unit, n, 2, false, false};
    std::vector<int8_t> start(num_chains * n);
    for (size_t i = 0; i < start.size(); ++i) start[i] = i * 7 % 3 ? 1 : -1;
    for (Scan scan : {Scan::raster, Scan::random}) {
        std::vector<int8_t> spins = start;
        IsingGibbsParams p{};
        p.spins = spins.data(), p.key = key, p.model = m, p.num_chains = num_chains, p.num_steps = 20, p.scan = scan;
        for (int64_t chain = 0; chain < num_chains; ++chain) IsingGibbs{p}.run(chain, nullptr);
        emit(spins);
    }
    std::vector<double> scratch(static_cast<size_t>(ising_gwg_scratch_bytes(m)) / 8 + 8);
    bool accepted[num_chains];
    double sums[num_chains];
    int64_t flips[num_chains];
    for (int kind = -1; kind < 4; ++kind) {
        std::vector<int8_t> spins = start;
        IsingChainParams p{};
        p.spins = spins.data(), p.is_accepted = accepted, p.acceptance_sums = sums, p.num_flips = flips, p.key = key, p.model = m;
        p.num_chains = num_chains, p.num_steps = 200, p.balancing = static_cast<Balancing>(kind < 0 ? 0 : kind);
        for (int64_t chain = 0; chain < num_chains; ++chain) {
            if (kind < 0) IsingMetropolis{p}.run(chain, nullptr);
            if (kind >= 0) IsingGwg{p}.run(chain, scratch.data());
        }
        emit(spins);
    }
}

void potts(int64_t n, int32_t q) {
    RingGraph ring(n, q);
    std::vector<uint8_t> start(num_chains * n);
    for (size_t i = 0; i < start.size(); ++i) start[i] = static_cast<uint8_t>(i * 7 % static_cast<size_t>(q));
    std::vector<double> scratch(static_cast<size_t>(potts_gwg_scratch_bytes(n, q, 2)) / 8 + 8);
    bool accepted[num_chains];
    double probs[num_chains];
    int64_t flips[num_chains];
    for (int kind = 0; kind < 3; ++kind) {
        std::vector<uint8_t> states = start;
        PottsParams p{};
        p.states = states.data(), p.key = key, p.offsets = ring.offsets.data(), p.neighbours = ring.neighbours.data();
        p.couplings = ring.couplings.data(), p.fields = ring.fields.data(), p.unit = &ring.unit, p.is_accepted = accepted;
        p.acceptance_prob = probs, p.num_flips = flips, p.num_chains = num_chains, p.num_sites = n, p.num_steps = kind == 0 ? 20 : 200;
        p.max_degree = 2, p.coupling_stride = 1, p.num_categories = q, p.is_bounded = true;
        for (int64_t chain = 0; chain < num_chains; ++chain) {
            if (kind == 0 && q <= 4) PottsGibbs<false, 4>{{p}}.run(chain, nullptr);
            if (kind == 0 && q > 4) PottsGibbs<false, kMaxCategories>{{p}}.run(chain, nullptr);
            if (kind == 1) PottsMetropolis<false, 4>{{p}}.run(chain, nullptr);
            if (kind == 2 && q <= 4) PottsGwg<false, 4>(p).run(chain, scratch.data());
            if (kind == 2 && q > 4) PottsGwg<false, kMaxCategories>(p).run(chain, scratch.data());
        }
        emit(states);
    }
}

void rbm(int64_t visible, int64_t hidden) {
    const int64_t wide = whole_tiles(visible), high = whole_tiles(hidden);
    const double scale = 1 << 20;
    std::vector<float> weight(visible * high), transposed(hidden * wide), a(wide, -3e38f), b(high, -3e38f);
    std::vector<int32_t> units(visible * hidden), inputs(num_chains * hidden);
    for (int64_t i = 0; i < visible; ++i) a[i] = static_cast<float>(i % 7 - 3) / 8;
    for (int64_t j = 0; j < hidden; ++j) b[j] = static_cast<float>(j % 5 - 2) / 8;
    for (int64_t i = 0; i < visible; ++i) {
        for (int64_t j = 0; j < hidden; ++j) {
            float w = static_cast<float>((i * 37 + j * 61) % 200 - 100) / 64;
            weight[i * high + j] = transposed[j * wide + i] = w;
            units[i * hidden + j] = static_cast<int32_t>(w * scale);
        }
    }
    std::vector<float> start(num_chains * visible);
    for (size_t i = 0; i < start.size(); ++i) start[i] = i * 7 % 3 ? 1 : 0;
    for (int64_t k = 0; k < num_chains * hidden; ++k) {
        inputs[k] = static_cast<int32_t>(b[k % hidden] * scale);
        for (int64_t i = 0; i < visible; ++i)
            inputs[k] += static_cast<int32_t>(start[k / hidden * visible + i]) * units[i * hidden + k % hidden];
    }
    std::vector<double> scratch(static_cast<size_t>(rbm_scratch_bytes(visible, hidden)) / 8);
    std::vector<int64_t> flips(num_chains);
    std::vector<float> states = start;
    RbmGibbsParams g{};
    g.states = states.data(), g.num_flips = flips.data(), g.weight = weight.data(), g.transposed = transposed.data();
    g.visible_bias = a.data(), g.hidden_bias = b.data(), g.key = key, g.num_chains = num_chains, g.num_visible = visible;
    g.num_hidden = hidden, g.num_steps = 20, g.hidden_stream = 8, g.visible_stream = 1;
    for (int64_t chain = 0; chain < num_chains; ++chain) RbmGibbsBody{g}.run(chain, scratch.data());
    emit(states), emit(flips);
    uint8_t accepted[num_chains];
    std::vector<double> acceptance(num_chains);
    for (int kind = 0; kind < 4; ++kind) {
        states = start;
        RbmGwgChainsParams p{};
        p.states = states.data(), p.inputs = inputs.data(), p.weight = units.data(), p.transposed = transposed.data();
        p.visible_bias = a.data(), p.key = key, p.is_accepted = accepted, p.acceptance = acceptance.data(), p.num_flips = flips.data();
        p.num_chains = num_chains, p.num_visible = visible, p.num_hidden = hidden, p.num_steps = 100;
        p.unit = static_cast<float>(1 / scale), p.balancing = static_cast<Balancing>(kind), p.proposal_stream = 1, p.acceptance_stream = 2;
        for (int64_t chain = 0; chain < num_chains; ++chain) RbmGwgChainsBody{p}.run(chain, scratch.data());
        emit(states), emit(acceptance), emit(flips);
    }
}

// What a warp shares, drawn anew at each question.
template <class Law, class C>
struct Blocks {
    using Drawn = typename Law::template Drawn<C>;
    int64_t probe, chain;

    Drawn value(int64_t block, int k) const {
        Drawn values[kBlockSize<Drawn>];
        draw_block<Drawn>(typename Law::Draw{}, philox_key(static_cast<uint64_t>(key[0])), static_cast<uint64_t>(key[1] + probe),
                          static_cast<uint64_t>(key[2] + chain), static_cast<uint64_t>(block), 3, values);
        return values[k];
    }
};

template <class Law, class C>
void probes(int64_t dim) {
    const int64_t num_probes = 2;
    std::vector<C> u = normals<C>(num_probes * dim, 4), v(u.size()), scaled(u.size()), dots(num_probes * num_chains);
    for (int64_t row = 0; row < num_probes * num_chains; ++row) {
        const Blocks<Law, C> source{row / num_chains, row % num_chains};
        double sum = 0.0;
        for (int64_t begin = 0; begin < dim; begin += kProbeSegment) {
            const int64_t end = begin + kProbeSegment < dim ? begin + kProbeSegment : dim;
            C sums[kRound];
            for (int lane = 0; lane < kRound; ++lane) {
                store_probe_lane<Law, C, false>(v.data() + row * dim, C(1), begin, end, lane, source);
                store_probe_lane<Law, C, true>(scaled.data() + row * dim, u[row], begin, end, lane, source);
                sums[lane] = probe_lane_sum<Law, C>(u.data() + row * dim, begin, dim, lane, source);
            }
            sum += static_cast<double>(round_sum(sums));
        }
        dots[row] = static_cast<C>(sum);
    }
    emit(v), emit(scaled), emit(dots);
}

template <class Function>
void derivatives(const std::vector<float>& x) {
    const int64_t size = static_cast<int64_t>(x.size());
    std::vector<float> planes(kDerivatives * size), dot(size);
    ActivationParams p{};
    p.out = planes.data(), p.x = x.data(), p.size = size, p.first = 0, p.count = kDerivatives;
    for (int64_t e = 0; e < size; ++e) DerivativesSink<Function>{p}.put({}, e, 0.0f);
    p.out = dot.data(), p.weights = planes.data(), p.first = 1, p.count = 3;
    for (int64_t e = 0; e < size; ++e) DerivativesDotSink<Function>{p}.put({}, e, 0.0f);
    emit(planes), emit(dot);
    std::vector<float> rows(x), slopes(2000), bias(x.begin(), x.begin() + 400);
    ActivationTangentsParams t{};
    t.rows = rows.data(), t.slopes = slopes.data(), t.bias = bias.data(), t.num_chains = 5, t.dim = 400, t.num_tangents = 9;
    TangentsSink<Function> sink{t};
    for (int64_t chain = 0; chain < t.num_chains; ++chain) {
        for (int64_t e = 0; e < t.dim; ++e) sink.put(sink.row(chain), e, 0.0f);
    }
    emit(rows), emit(slopes);
}

void activations() {
    std::vector<float> x = normals<float>(4000, 5);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= static_cast<float>(1 << i % 10);
    derivatives<SigmoidDerivatives>(x);
    derivatives<SoftplusDerivatives>(x);
    derivatives<SiluDerivatives>(x);
    derivatives<TanhDerivatives>(x);
    derivatives<ReluDerivatives>(x);
}

template <class C>
struct Part {
    EnergyKind kind;
    int64_t num_components;
    std::vector<C> constants;
    double weight = 1.0;
};

template <class C, template <class> class Body>
void chain(int64_t dim, const std::vector<Part<C>>& parts, const std::vector<C>& factors) {
    std::vector<C> x = normals<C>(dim, 3), momentum = normals<C>(dim, 4), grad(x.size(), C(0)), energies(num_chains);
    DynamicsParams p{};
    for (const Part<C>& part : parts) {
        EnergyParams& energy = p.parts[p.num_parts];
        energy.constants = part.constants.data(), energy.dim = dim, energy.num_components = part.num_components, energy.kind = part.kind;
        energy.num_chains = num_chains;
        p.weights[p.num_parts++] = part.weight;
        if (part.num_components > p.num_components) p.num_components = part.num_components;
    }
    std::vector<C> drift(dim), noise(dim), workspace(num_chains * dynamics_scratch(dim, p.num_components, p.num_parts));
    for (int64_t e = 0; e < dim; ++e) drift[e] = C(1 + e % 3) / 64, noise[e] = C(2 + e % 3) / 16;
    uint8_t accepted[num_chains];
    std::vector<double> acceptance(num_chains);
    std::vector<int64_t> diverged(num_chains);
    p.dim = dim, p.factors = factors.empty() ? nullptr : factors.data();
    p.x = x.data(), p.momentum = momentum.data(), p.energies = energies.data(), p.grad = grad.data(), p.is_accepted = accepted;
    p.acceptance = acceptance.data(), p.num_diverged = diverged.data(), p.drift = drift.data(), p.noise = noise.data(), p.key = key;
    p.num_chains = num_chains, p.num_steps = 20, p.num_leapfrog = 3, p.step_size = 0.0625, p.noise_std = 0.25, p.clip_grad = 2.0;
    p.clamp_min = -3.0, p.clamp_max = 3.0, p.decay = 0.75, p.jitter = 0.5, p.proposal_stream = 1, p.acceptance_stream = 2;
    p.jitter_stream = 11, p.workspace = workspace.data();
    for (int64_t i = 0; i < num_chains; ++i) Body<C>{p, 1}.run(i, nullptr);
    emit(x), emit(momentum), emit(energies), emit(acceptance), emit(diverged);
}

template <class C>
using BoundedLangevin = LangevinDynamics<C, true>;

template <class C>
void chains(int64_t dim, const std::vector<Part<C>>& parts, const std::vector<C>& factors = {}) {
    chain<C, BoundedLangevin>(dim, parts, factors);
    chain<C, MalaDynamics>(dim, parts, factors);
    chain<C, HmcDynamics>(dim, parts, factors);
    chain<C, KineticLangevinDynamics>(dim, parts, factors);
    chain<C, RandomWalkDynamics>(dim, parts, factors);
}

template <class C>
void dynamics() {
    std::vector<C> ramp(1000);
    for (int64_t i = 0; i < 1000; ++i) ramp[i] = C(1 + i % 7) / 4;
    chains<C>(5, {{EnergyKind::double_well, 0, {2, 1}}});
    chains<C>(3, {{EnergyKind::rosenbrock, 0, {1, 4}}});
    chains<C>(6, {{EnergyKind::funnel, 0, {C(0.25)}}});
    chains<C>(2, {{EnergyKind::ring, 0, {2, 4}}});
    chains<C>(2, {{EnergyKind::banana, 0, {C(0.25), C(0.25), 4}}});
    chains<C>(5, {{EnergyKind::gaussian_diagonal, 0, ramp}});
    chains<C>(5, {{EnergyKind::gaussian_full, 0, ramp}});
    chains<C>(2, {{EnergyKind::gaussian_mixture, 3, ramp}});
    chains<C>(2, {{EnergyKind::ring, 0, {2, 4}, 0.5}});
    chains<C>(2, {{EnergyKind::gaussian_mixture, 3, ramp}, {EnergyKind::ring, 0, {2, 4}, -0.25}, {EnergyKind::banana, 0, {1, 1, 4}}},
              {C(1), C(0.5), C(0.25), C(2), C(1)});
}

template <class C, bool kLangevin>
void metropolis(int64_t dim) {
    std::vector<C> x = normals<C>(dim, 3), grad = normals<C>(dim, 4), new_x = normals<C>(dim, 5), new_grad = normals<C>(dim, 6);
    std::vector<C> energies = normals<C>(1, 7), new_energies = normals<C>(1, 8), inverse_mass(dim);
    for (int64_t e = 0; e < dim; ++e) inverse_mass[e] = C(1 + e % 3) / 2;
    std::vector<double> corrections = normals<double>(1, 9), sums(num_chains);
    uint8_t accepted[num_chains];
    std::vector<int64_t> diverged(num_chains);
    MetropolisAcceptParams p{};
    p.x = x.data(), p.energies = energies.data(), p.grad = grad.data(), p.new_x = new_x.data(), p.new_energies = new_energies.data();
    p.new_grad = new_grad.data(), p.key = key, p.is_accepted = accepted, p.prob_sum = sums.data(), p.num_diverged = diverged.data();
    p.num_chains = num_chains, p.dim = dim, p.stream = 2, p.dtype = p.energy_dtype = sizeof(C) == 8 ? Dtype::float64 : Dtype::float32;
    if (kLangevin) {
        p.step_size = 0.0625, p.inverse_mass = inverse_mass.data();
    } else {
        p.log_corrections = corrections.data();
    }
    for (int64_t i = 0; i < num_chains; ++i) MetropolisAccept<C, kLangevin>{p}.run(i, nullptr);
    emit(x), emit(energies), emit(grad), emit(sums), emit(diverged);
}

void swaps(int64_t num_temperatures) {
    std::vector<double> energies = normals<double>(num_temperatures, 3), betas(num_temperatures), scales(2 * num_temperatures - 2);
    std::vector<float> grad = normals<float>(3 * num_temperatures, 4);
    std::vector<int64_t> names(num_chains * num_temperatures), num_swaps(num_chains * (num_temperatures - 1)), trips(num_chains);
    std::vector<double> sums(num_swaps.size());
    std::vector<uint8_t> hottest(names.size());
    for (size_t i = 0; i < names.size(); ++i) names[i] = static_cast<int64_t>(i), hottest[i] = i % 3 == 0;
    for (int64_t r = 0; r < num_temperatures; ++r) betas[r] = 1.0 / static_cast<double>(1 << r);
    for (int64_t r = 0; r + 1 < num_temperatures; ++r) scales[r] = 2.0, scales[num_temperatures - 1 + r] = 0.5;
    SwapReplicasParams p{};
    p.fields[0] = {energies.data(), scales.data(), 1, Dtype::float64};
    p.fields[1] = {grad.data(), scales.data(), 3, Dtype::float32};
    p.fields[2] = {names.data(), nullptr, 1, Dtype::int64};
    p.num_fields = 3, p.betas = betas.data(), p.has_been_hottest = hottest.data(), p.prob_sum = sums.data(), p.num_swaps = num_swaps.data();
    p.num_round_trips = trips.data(), p.key = key, p.num_chains = num_chains, p.num_temperatures = num_temperatures, p.stream = 12;
    for (int64_t i = 0; i < num_chains; ++i) SwapReplicas{p}.run(i, nullptr);
    emit(energies), emit(grad), emit(names), emit(hottest), emit(sums), emit(num_swaps), emit(trips);
}

int main() {
    for (int64_t dim : {1, 6, 200, 10007}) {
        emit(normals<float>(dim, 2));
        emit(normals<double>(dim, 2));
        std::vector<float> f(num_chains * dim);
        std::vector<double> d(num_chains * dim);
        run<float>(DrawWord{}, StoreSink<float>{f.data(), dim}, dim, 2), emit(f);
        run<float>(DrawUniform{}, StoreSink<float>{f.data(), dim}, dim, 2), emit(f);
        run<double>(DrawUniform{}, StoreSink<double>{d.data(), dim}, dim, 2), emit(d);
        run<float>(DrawBernoulli{1u << 30}, StoreSink<float>{f.data(), dim}, dim, 2), emit(f);
        RademacherSink<float> signs{f.data(), dim};
        run<float>(DrawWord{}, signs, (dim + 31) / 32, 2), emit(f);
        langevin<float>(dim);
        langevin<double>(dim);
        langevin<BFloat16>(dim);
        langevin<Float16>(dim);
    }
    for (int64_t n : {5, 40, 300}) ising(n);
    for (int32_t q : {3, 20}) potts(40, q);
    rbm(20, 7), rbm(33, 40);
    for (int64_t dim : {1, 6, 200, 10007}) {
        probes<RademacherLaw, float>(dim), probes<RademacherLaw, double>(dim);
        probes<GaussianLaw, float>(dim), probes<GaussianLaw, double>(dim);
    }
    activations();
    dynamics<float>(), dynamics<double>();
    for (int64_t dim : {1, 6, 200}) {
        metropolis<float, true>(dim), metropolis<float, false>(dim), metropolis<double, true>(dim), metropolis<double, false>(dim);
    }
    for (int64_t num_temperatures : {2, 5}) swaps(num_temperatures);
    return 0;
}
