#!/usr/bin/env bash
# What has to run on a card: build from source, the tests that need one, compute-sanitizer, the benchmark.
#
#   bench/gpu_check.sh [FOLDER]     default: bench/results/<name of the GPU>
#
# Needs Python with torch, pytest, numpy and the build tools (scikit-build-core, pybind11, cmake, ninja), nvcc, a C++ compiler; no
# network. Writes to FOLDER and to a work folder under TMPDIR, which it deletes. Every stage has its own limit, all together at most
# nine minutes; a stage that fails does not keep the later ones from running. Exit status: 0 if none failed.
#
#   PYTHON=...                      the interpreter (python3)
#   CUDAARCHS=...                   for which GPUs to compile (native)
#   EBMCORE_CHECK_DEVICE=cpu        a rehearsal without a card: the same stages on the CPU, built with EBMCORE_CUDA=${EBMCORE_CUDA:-OFF}
#   EBMCORE_CHECK_SIZES=...         sizes of the float32 benchmark
# shellcheck disable=SC2329  # the stages' functions are called by name
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export PYTHON=${PYTHON:-python3}
export DEVICE=${EBMCORE_CHECK_DEVICE:-cuda}
export SIZES=${EBMCORE_CHECK_SIZES:-1e5,1e6,1e7,1e8}
readonly TRACES="784-512-512-784 1 probe,784-512-512-784 16 probes,784-512-512-784 exact,784-512-512-784 update 1,probe and dot 784"
readonly TOTAL=530 # seconds
readonly SKIPPED=77

if [ "$DEVICE" = cuda ]; then
    export CUDAARCHS=${CUDAARCHS:-native}
    cuda=ON
    device_name=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | head -n 1)
    device_name=${device_name:-$("$PYTHON" -c 'import torch; print(torch.cuda.get_device_name())' 2>/dev/null)}
else
    cuda=${EBMCORE_CUDA:-OFF}
    device_name="cpu $(uname -m)"
fi
export cuda
folder=$(printf '%s' "${device_name:-unknown gpu}" | tr 'A-Z /' 'a-z--' | tr -cd 'a-z0-9._-')
out=${1:-$root/bench/results/$folder}
mkdir -p "$out" || exit 2
OUT=$(cd "$out" && pwd)
WORK=$(mktemp -d "${TMPDIR:-/tmp}/ebmcore-check.XXXXXX") || exit 2
trap 'rm -rf "$WORK"' EXIT
export OUT WORK
export PYTHONPATH=$WORK/site PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 TMPDIR=$WORK/tmp MPLCONFIGDIR=$WORK/tmp
export TORCHINDUCTOR_CACHE_DIR=$WORK/inductor TRITON_CACHE_DIR=$WORK/triton CUDA_CACHE_PATH=$WORK/cuda-cache
mkdir "$WORK/tmp" "$WORK/source"
# Nothing is built in, and nothing written to, the checkout.
tar -C "$root" --exclude=./.git --exclude=./build --exclude=./dist --exclude=./.venv --exclude=__pycache__ --exclude='./.*_cache' -cf - . |
    tar -C "$WORK/source" -xf - || exit 2
cd "$WORK" || exit 2 # not the source folder: its ebmcore/ would hide the installed one
: >"$OUT/log.txt"
rm -f "$OUT"/*.json "$OUT/tests.xml" "$OUT/summary.md"

machine() {
    nvcc --version 2>/dev/null | tail -n 2 || echo "no nvcc on the PATH"
    "$PYTHON" - <<'EOF'
import importlib.metadata, platform
import torch
print("python", platform.python_version(), "torch", torch.__version__, "CUDA of torch", torch.version.cuda)
for name in ("numpy", "pytest", "scipy", "scikit-learn", "matplotlib", "scikit-build-core", "pybind11", "cmake", "ninja", "triton"):
    try:
        print(name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        print(name, "is not installed as a Python package")
if torch.cuda.is_available():
    p = torch.cuda.get_device_properties(0)
    print(p.name, f"sm_{p.major}{p.minor}", p.multi_processor_count, "multiprocessors", p.total_memory >> 20, "MiB, L2", p.L2_cache_size >> 20, "MiB")
EOF
}

build() {
    SKBUILD_CMAKE_DEFINE="EBMCORE_CUDA=$cuda" "$PYTHON" -m pip install --verbose --no-build-isolation --no-deps --no-index --no-cache-dir \
        --target "$WORK/site" -C build-dir="$WORK/build" "$WORK/source" >"$WORK/build.txt" 2>&1 || {
        tail -n 60 "$WORK/build.txt"
        return 1
    }
    grep -iE 'ebmcore: |warning' "$WORK/build.txt"
    ls -l "$WORK"/site/ebmcore/*.so
    "$PYTHON" -c 'import os, sys, ebmcore
print(ebmcore.info())
if not ebmcore.__file__.startswith(os.environ["WORK"]):
    sys.exit(f"{ebmcore.__file__} would be tested, not what was just built: run with an interpreter that has no ebmcore")'
    [ "$DEVICE" != cuda ] || "$PYTHON" -c 'import sys, ebmcore; sys.exit(ebmcore.info()["cuda_problem"] or 0)'
}

# On a card: all that takes the `device` fixture as cuda, and all that is for CUDA only; both carry the marker.
tests() {
    local select=(-m cuda)
    [ "$DEVICE" = cuda ] || select=(-k "[cpu")
    # Another torch may warn of other things: warnings are shown here, not errors. Extras that are missing cost their own modules only.
    "$PYTHON" -m pytest --rootdir "$WORK/source" -c "$WORK/source/pyproject.toml" -o filterwarnings=default -p no:cacheprovider -q \
        --continue-on-collection-errors --junitxml "$OUT/tests.xml" "${select[@]}" "$WORK/source/tests"
    local status=$?
    "$PYTHON" - "$OUT/tests.xml" <<'EOF' || status=1
import sys
import xml.etree.ElementTree as xml
count = {k: sum(int(s.get(k, 0)) for s in xml.parse(sys.argv[1]).iter("testsuite")) for k in ("tests", "failures", "errors", "skipped")}
passed = count["tests"] - count["failures"] - count["errors"] - count["skipped"]
print(f"{passed} passed, {count['failures']} failed, {count['errors']} errors, {count['skipped']} skipped")
sys.exit("no test ran" if passed < 1 else 0)
EOF
    return "$status"
}

benchmark() { # case, dtype, further arguments
    "$PYTHON" -m ebmcore.bench.run "$1" --device "$DEVICE" --dtype "$2" --json "$OUT/$1-$2.json" "${@:3}" >"$WORK/bench.txt" 2>&1
    local status=$?
    cat "$WORK/bench.txt"
    { echo && sed -E 's/^(ebmcore bench|checked:)/\n\1/' "$WORK/bench.txt"; } >>"$WORK/tables.md"
    return "$status"
}

sanitizer() { # tool
    local tool
    tool=$(PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin:/usr/local/cuda/bin command -v compute-sanitizer)
    if [ "$DEVICE" != cuda ] || [ -z "$tool" ]; then
        echo "compute-sanitizer was not found, or there is no card here"
        return "$SKIPPED"
    fi
    cat >"$WORK/short.py" <<'EOF'
import torch
from ebmcore import (
    HMC, MALA, BlockGibbs, DiscreteLangevin, Gibbs, GibbsWithGradients, Key, KineticLangevin, Langevin, ParallelTempering, PathAuxiliary,
    RandomFlipMetropolis, RandomWalkMetropolis, SwendsenWang, energies, ops,
)

key = Key(7, step=3, first_chain=11)
for shape in ((5, 7), (3, 301), (2, 9001)):  # odd ends; gradient norms of several segments
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        x = torch.full(shape, 0.5, dtype=dtype, device="cuda")
        grad = torch.full(shape, -2.0, dtype=dtype, device="cuda")
        for more in ({}, {"noise_std": 0.0}, {"clip_grad": 0.5, "clamp": (-1.0, 1.0)}, {"clip_grad_norm": 1.0}):
            arguments = {"step_size": 0.1, "noise_std": 0.2, "key": key} | more
            y = ops.langevin_step(x, grad, **arguments)
            ops.langevin_step_(y, grad, **arguments)
            assert y.isfinite().all()
    for dtype in (torch.float32, torch.float64):
        for draw in (ops.uniform, ops.normal, ops.rademacher):
            assert draw(shape, key=key, dtype=dtype, device="cuda").isfinite().all()
        ops.bernoulli(shape, 0.3, key=key, dtype=dtype, device="cuda")
        for law in ("rademacher", "gaussian"):
            u = ops.probes((2, *shape), key=key, probe=law, dtype=dtype, device="cuda").requires_grad_()
            ops.probe_dot(u, key=key, probe=law).sum().backward()  # its backward is probe_scale
            assert u.grad.isfinite().all()
        for activation in ("silu", "tanh", "softplus"):
            z = torch.full(shape, 0.5, dtype=dtype, device="cuda", requires_grad=True)
            ops.activation_derivatives(z, activation, 0, 3).sum().backward()
            assert z.grad.isfinite().all()
    ops.philox(shape, key=key, device="cuda")
spins = torch.ones(3, 4, 6, dtype=torch.int8, device="cuda")
tokens = torch.zeros(3, 4, 6, dtype=torch.uint8, device="cuda")
bits = torch.zeros(3, 7, device="cuda")
ising, potts = energies.Ising.lattice((4, 6), 0.3).cuda(), energies.Potts.lattice((4, 6), 5, 0.5).cuda()
rbm, deep = energies.BernoulliRBM(7, 5).cuda(), energies.MLP(7, hidden=(4,)).cuda()
for sampler in (Gibbs(), Gibbs("random"), Gibbs("checkerboard"), RandomFlipMetropolis(), GibbsWithGradients(), SwendsenWang()):
    for energy, x in ((ising, spins), (potts, tokens)):
        sampler(energy, x, 3, seed=1)
for sampler in (GibbsWithGradients(), GibbsWithGradients(num_flips=2), DiscreteLangevin(0.5), PathAuxiliary(2)):
    for energy, x in ((ising, spins), (potts, tokens), (deep, bits), (rbm, bits)):
        sampler(energy, x, 3, seed=1)
BlockGibbs()(rbm, bits, 3, seed=1)
normal, well = energies.Gaussian(torch.zeros(7), precision=torch.ones(7)).cuda(), energies.DoubleWell().cuda()
mixture = energies.GaussianMixture([0.5, 0.5], torch.eye(7)[:2], std=1.0).cuda()
full = energies.Gaussian(torch.zeros(7), precision=torch.eye(7) + 0.1).cuda()
for sampler in (Langevin(0.01), MALA(0.01), HMC(0.05, 3), KineticLangevin(0.05, 1.0), RandomWalkMetropolis(0.1)):
    for energy in (normal, full, well, mixture, deep, energies.product(deep, normal), energies.Rosenbrock().cuda(), energies.Funnel(3).cuda(),
                   energies.Ring().cuda(), energies.Banana().cuda()):
        dim = getattr(energy, "dim", None) or 7
        sampler(energy, torch.zeros(37, dim, device="cuda"), 3, seed=1)
    ParallelTempering(sampler, (1.0, 2.0))(normal, torch.zeros(5, 7, device="cuda"), 3, seed=1)
    sampler(lambda x: x.square().sum(1), torch.zeros(37, 7, device="cuda"), 3, seed=1)
torch.cuda.synchronize()
print("all ops ran")
EOF
    # Without torch's caching allocator every tensor is an allocation of its own, with its own bounds.
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 "$tool" --tool "$1" --error-exitcode 9 --print-limit 20 "$PYTHON" "$WORK/short.py" >"$WORK/$1.txt" 2>&1
    local status=$?
    tail -n 60 "$WORK/$1.txt"
    if grep -qiE 'device not supported|unable to find injection|no attachable process|not supported on this' "$WORK/$1.txt"; then
        echo "compute-sanitizer refuses this device or machine"
        return "$SKIPPED"
    fi
    return "$status"
}
export SKIPPED
export -f machine build tests benchmark sanitizer

summary=()
failed=0
stage() { # name, limit in seconds, function, its arguments
    local name=$1 limit=$2 left=$((TOTAL - SECONDS)) started=$SECONDS status reason=
    [ "$limit" -le "$left" ] || limit=$left
    echo "== $name" | tee -a "$OUT/log.txt"
    if [ "$limit" -lt 5 ]; then
        status=124
    else
        # shellcheck disable=SC2016  # expanded by the inner shell
        timeout -k 5 "$limit" bash -uo pipefail -c '"$@"' stage "${@:3}" 2>&1 | tee "$WORK/stage.txt" | tee -a "$OUT/log.txt"
        status=${PIPESTATUS[0]}
    fi
    case $status in
        0) reason=passed ;;
        "$SKIPPED") reason="skipped: $(tail -n 1 "$WORK/stage.txt")" ;;
        124 | 137) reason="FAILED: ran past its ${limit} s" ;;
        *) reason="FAILED: exit status $status" ;;
    esac
    case $reason in FAILED*) failed=1 ;; esac
    summary+=("| $name | $reason | $((SECONDS - started)) |")
    echo "   $name: $reason" | tee -a "$OUT/log.txt"
}

: >"$WORK/tables.md"
stage "machine" 30 machine
stage "build" 120 build
stage "tests" 150 tests
if [ "$DEVICE" = cuda ]; then
    stage "benchmark langevin float32" 90 benchmark langevin float32 --sizes "$SIZES"
    stage "benchmark langevin bfloat16" 40 benchmark langevin bfloat16 --sizes 1e6,1e8 --no-compile --rounds 15
    stage "benchmark noise" 40 benchmark noise float32 --sizes 1e6,1e8 --rounds 15
    stage "benchmark trace" 60 benchmark trace float32 --only "$TRACES" --no-compile --rounds 10
    stage "benchmark chains" 40 benchmark chains float32 --no-compile --rounds 5
    stage "benchmark hmc" 40 benchmark hmc float32 --no-compile --rounds 5
else
    stage "benchmark langevin float32" 60 benchmark langevin float32 --sizes 1e4,1e5 --no-compile --threads 1 --rounds 5
    stage "benchmark noise" 40 benchmark noise float32 --sizes 1e5 --threads 1 --rounds 5
    stage "benchmark trace" 60 benchmark trace float32 --only "$TRACES" --no-compile --threads 1 --rounds 2
    stage "benchmark chains" 40 benchmark chains float32 --only "double well 100x2" --no-compile --threads 1 --rounds 2
fi
for tool in memcheck racecheck initcheck synccheck; do
    stage "compute-sanitizer $tool" 75 sanitizer "$tool"
done

{
    echo "# ${device_name:-unknown GPU}"
    echo
    echo "| stage | outcome | seconds |"
    echo "| --- | --- | ---: |"
    printf '%s\n' "${summary[@]}"
    cat "$WORK/tables.md"
} >"$OUT/summary.md"
printf '%s\n' "" "${summary[@]}" "all in all $SECONDS s; results in $OUT" | tee -a "$OUT/log.txt"
exit "$failed"
