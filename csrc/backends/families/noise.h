// Draws.
#include "../launch.h"

EBM_BEGIN
namespace {

template <class C, class T, class Draw>
Status fill(const FillParams& p, const Draw& draw) {
    StoreSink<T> sink{static_cast<T*>(p.out), p.dim};
    return for_each_block<C>(draw, sink, p.key, p.num_chains, p.dim, p.first_block, p.stream, p.place);
}

template <class T>
Status fill_rademacher(const FillParams& p) {
    RademacherSink<T> sink{static_cast<T*>(p.out), p.dim};
    return for_each_block<float>(DrawWord{}, sink, p.key, p.num_chains, (p.dim + 31) / 32, p.first_block, p.stream, p.place);
}

}  // namespace

Status philox(const FillParams& p) { return fill<float, float>(p, DrawWord{}); }
Status uniform(const FillParams& p) {
    return p.dtype == Dtype::float64 ? fill<double, double>(p, DrawUniform{}) : fill<float, float>(p, DrawUniform{});
}
Status normal(const FillParams& p) {
    return p.dtype == Dtype::float64 ? fill<double, double>(p, DrawNormal{}) : fill<float, float>(p, DrawNormal{});
}
Status rademacher(const FillParams& p) { return p.dtype == Dtype::float64 ? fill_rademacher<double>(p) : fill_rademacher<float>(p); }
Status bernoulli(const FillParams& p) {
    DrawBernoulli draw{p.threshold};
    return p.dtype == Dtype::float64 ? fill<float, double>(p, draw) : fill<float, float>(p, draw);
}

EBM_END
