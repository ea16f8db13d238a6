// Runs the maths of the CUDA kernels, on single lanes, on the host, and writes the results: see test_single_lane.py.
#include <cstdio>
#include <vector>

#include "../../csrc/kernels/block.h"
#include "../../csrc/kernels/langevin.h"

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
    return 0;
}
