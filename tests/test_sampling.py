"""sample(): what is kept, what an interrupt leaves, what is refused."""

from __future__ import annotations

import builtins
import signal
import sys
import threading
import time
from typing import NamedTuple

import pytest
import torch

from ebmcore import MALA, DivergenceError, Key, Langevin, Trace, ops, sample
from support.targets import Counting, assert_same_bits, quartic

SAMPLER = Langevin(0.01)
KEY = Key(3, step=1)
X = ops.normal((6, 3), key=Key(1), dtype=torch.float64)


def states(count: int) -> list[torch.Tensor]:
    """x after 0, 1, ..., count steps."""
    state = SAMPLER.init(quartic, X, seed=KEY)
    result = [state.x]
    for _ in range(count):
        state, _ = SAMPLER.step(quartic, state)
        result.append(state.x)
    return result


@pytest.mark.parametrize(
    ("num_steps", "num_warmup", "thinning"), [(12, 0, 1), (12, 5, 1), (12, 0, 3), (12, 5, 5), (250, 230, 100), (7, 0, 7), (0, 4, 1), (0, 0, 1)]
)
def test_what_is_kept(num_steps, num_warmup, thinning):
    energy = Counting(quartic)
    trace = sample(SAMPLER, energy, X, num_steps, num_warmup=num_warmup, thinning=thinning, seed=KEY)
    expected = states(num_warmup + num_steps)
    kept = expected[num_warmup:][thinning::thinning]
    assert isinstance(trace, Trace)
    assert trace.x.shape == (num_steps // thinning, 6, 3) == (len(kept), 6, 3)
    assert trace.x.dtype == X.dtype
    for x, y in zip(trace.x, kept, strict=True):
        assert_same_bits(x, y)
    assert_same_bits(trace.state.x, expected[-1])  # steps that did not fill a whole thinning were done, too
    assert trace.state.key == KEY.advance(num_warmup + num_steps)
    assert energy.count == 1 + num_warmup + num_steps
    if kept:
        assert trace.info.is_diverged.shape == trace.info.num_restarts.shape == (len(kept), 6)
    else:
        assert trace.info is None


def test_a_trace_goes_on():
    trace = sample(SAMPLER, quartic, X, 5, seed=KEY)
    state, _ = SAMPLER.advance(quartic, trace.state, 5)
    assert_same_bits(state.x, states(10)[10])
    again = sample(SAMPLER, quartic, trace.state.x, 5, seed=trace.state.key)
    assert_same_bits(again.x[-1], states(10)[10])


def test_info_belongs_to_the_steps_between():
    calls = Counting(quartic)

    def walled(x):
        """Chain 2 falls off at the results of steps 3 and 7 (evaluations 4 and 8)."""
        values = calls(x)
        return torch.where((torch.arange(6) == 2) & (calls.count in (5, 9)), float("nan"), values)

    trace = sample(Langevin(0.01, on_divergence="restart"), walled, X, 12, thinning=3, seed=KEY)
    assert trace.info.num_restarts[:, 2].tolist() == [0, 1, 1, 0]
    assert trace.info.is_diverged[:, 2].tolist() == [False, True, True, False]
    assert int(trace.info.num_restarts.sum()) == 2


def test_record():
    trace = sample(SAMPLER, quartic, X, 6, thinning=2, seed=KEY, record=lambda state, info: state.energy)
    expected = states(6)
    assert trace.x.shape == (3, 6)
    torch.testing.assert_close(trace.x, torch.stack([quartic(x) for x in expected[2::2]]))
    numbers = sample(SAMPLER, quartic, X, 6, seed=KEY, record=lambda state, info: (state.step, int(info.num_restarts.sum())))
    assert numbers.x == [(k, 0) for k in range(1, 7)]
    assert sample(SAMPLER, quartic, X, 0, seed=KEY, record=lambda state, info: 1).x == []


def test_kept_states_are_copies():
    trace = sample(SAMPLER, quartic, X, 3, seed=KEY)
    assert len({trace.x[i].data_ptr() for i in range(3)} | {trace.state.x.data_ptr(), X.data_ptr()}) == 5


def test_any_sampler_will_do():
    """Only init and advance are asked for."""

    class Info(NamedTuple):
        is_diverged: torch.Tensor

    class Mine:
        def init(self, energy, x, *, seed=None):
            return SAMPLER.init(energy, x, seed=seed)

        def advance(self, energy, state, num_steps):
            state, info = SAMPLER.advance(energy, state, num_steps)
            return state, Info(info.is_diverged)

    assert_same_bits(sample(Mine(), quartic, X, 5, seed=KEY).x, sample(SAMPLER, quartic, X, 5, seed=KEY).x)


def test_zero_chains(untouched_generator):
    assert sample(SAMPLER, quartic, X[:0], 5).x.shape == (5, 0, 3)


def test_progress(capfd):
    pytest.importorskip("tqdm")
    trace = sample(SAMPLER, quartic, X, 10, num_warmup=130, thinning=3, seed=KEY, progress=True)
    assert_same_bits(trace.state.x, states(140)[140])
    shown = capfd.readouterr().err
    assert "140/140" in shown
    sample(SAMPLER, quartic, X, 3, seed=KEY)
    assert capfd.readouterr() == ("", "")


def test_progress_without_tqdm(monkeypatch):
    real = builtins.__import__

    def no_tqdm(name, *arguments, **others):
        if name.startswith("tqdm"):
            raise ImportError(name)
        return real(name, *arguments, **others)

    monkeypatch.setattr(builtins, "__import__", no_tqdm)
    with pytest.warns(UserWarning, match="progress=True needs tqdm") as caught:
        trace = sample(SAMPLER, quartic, X, 3, seed=KEY, progress=True)
    assert trace.x.shape == (3, 6, 3)
    assert caught[0].filename == __file__  # the caller's line


# Interrupts


def resume(trace: Trace, num_steps: int) -> torch.Tensor:
    return SAMPLER.advance(quartic, trace.state, num_steps)[0].x


@pytest.mark.parametrize("evaluation", [1, 2, 60, 131, 140, 141, 150, 159])
def test_an_interrupt_leaves_a_trace(evaluation):
    """As if Ctrl-C came during evaluation k: 130 steps of warm-up, then 30, every third kept; the trace resumes to the same bits."""
    energy = Counting(quartic)

    def interrupted(x):
        if energy.count == evaluation:
            raise KeyboardInterrupt
        return energy(x)

    with pytest.raises(KeyboardInterrupt) as caught:
        sample(SAMPLER, interrupted, X, 30, num_warmup=130, thinning=3, seed=KEY)
    trace = caught.value.trace
    expected = states(160)
    done = trace.state.key.step - KEY.step
    assert 0 <= done < evaluation
    assert_same_bits(trace.state.x, expected[done])
    assert len(trace.x) == max(0, done - 130) // 3
    for i, x in enumerate(trace.x):
        assert_same_bits(x, expected[130 + 3 * (i + 1)])
    assert_same_bits(resume(trace, 160 - done), expected[160])
    assert done >= evaluation - 100  # at most a slice of the warm-up or a thinning is lost


def test_an_interrupt_between_any_two_lines():
    """Wherever in sample() it strikes, no kept state is garbage and none is out of step with the state."""
    expected = states(8)
    lines_hit = set()
    for strike in range(200):
        lines = 0

        def tracer(frame, event, argument, strike=strike):
            nonlocal lines
            if frame.f_code is not sample.__code__:
                return None
            if event == "line" and "kept" in frame.f_locals and "infos" in frame.f_locals:
                if lines == strike:
                    lines_hit.add(frame.f_lineno)
                    raise KeyboardInterrupt
                lines += 1
            return tracer

        # Memory that was never written shows up as 0 or NaN, if at all; make sure that it differs.
        previous = sys.gettrace()
        sys.settrace(tracer)
        try:
            sample(SAMPLER, quartic, X, 6, num_warmup=2, thinning=2, seed=KEY)
        except KeyboardInterrupt as interrupt:
            if not hasattr(interrupt, "trace"):
                continue  # before the first step, or on the way out
            trace = interrupt.trace
        else:
            break
        finally:
            sys.settrace(previous)
        done = trace.state.key.step - KEY.step
        assert_same_bits(trace.state.x, expected[done])
        assert len(trace.x) == max(0, done - 2) // 2, f"line {max(lines_hit)}"
        for i, x in enumerate(trace.x):
            assert_same_bits(x, expected[2 + 2 * (i + 1)], "a kept state")
    else:
        pytest.fail("sample never finished")
    assert len(lines_hit) > 8


def test_ctrl_c_within_a_fifth_of_a_second():
    """A real signal, with evaluations of 2 ms each; the whole run would take 20 s."""
    sent = []

    def send():
        sent.append(time.perf_counter())
        signal.raise_signal(signal.SIGINT)

    def slow(x):
        time.sleep(0.002)
        return quartic(x)

    timer = threading.Timer(0.3, send)
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            sample(SAMPLER, slow, X, 10_000, seed=KEY)
        stopped = time.perf_counter()
    finally:
        signal.signal(signal.SIGINT, handler)
        timer.cancel()
    assert stopped - sent[0] < 0.2
    trace = caught.value.trace
    done = trace.state.key.step - KEY.step
    assert 10 < done < 1000
    expected = states(done + 5)
    assert_same_bits(trace.x, torch.stack(expected[1 : len(trace.x) + 1]))
    assert_same_bits(resume(trace, 5), expected[done + 5])


# Refusals


@pytest.mark.parametrize("name", ["num_steps", "num_warmup", "thinning"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (1.0, TypeError), ("1", TypeError), (True, TypeError), (None, TypeError), (torch.tensor(1.0), TypeError)],
    ids=repr,
)
def test_bad_counts(name, value, error):
    with pytest.raises(error, match=f"^sample: {name} must be"):
        sample(SAMPLER, quartic, X, **{"num_steps": 5, name: value}, seed=KEY)


def test_bad_thinning():
    with pytest.raises(ValueError, match=r"sample: thinning must be .*, got 0"):
        sample(SAMPLER, quartic, X, 5, thinning=0)
    with pytest.raises(ValueError, match="thinning must be at most num_steps=5, got 6: nothing would be kept"):
        sample(SAMPLER, quartic, X, 5, thinning=6)


def test_counts_are_checked_before_the_energy_runs(untouched_generator):
    energy = Counting(quartic)
    with pytest.raises(ValueError, match="thinning"):
        sample(SAMPLER, energy, X, 5, thinning=6)
    assert energy.count == 0


@pytest.mark.parametrize("num_steps", [10**15, 2**62])
def test_states_that_do_not_fit(num_steps):
    """The size is named before the first step, with advice."""
    energy = Counting(quartic)
    with pytest.raises(MemoryError, match=r"states need .* bytes; raise thinning or pass record="):
        sample(SAMPLER, energy, X, num_steps, seed=KEY)
    assert energy.count <= 1


def test_divergence_passes_through():
    with pytest.raises(DivergenceError, match="step"):
        sample(Langevin(3.0), quartic, X, 1000, seed=KEY)


class TestToArviz:
    def test_draws_and_statistics(self):
        pytest.importorskip("arviz_base", reason="the extra 'diagnostics' is not installed")
        trace = sample(MALA(0.05), quartic, X, 20, thinning=2, seed=KEY)
        tree = trace.to_arviz()
        assert tree["posterior"]["x"].dims[:2] == ("chain", "draw")
        assert (tree["posterior"]["x"].values == trace.x.transpose(0, 1).numpy()).all()
        stats = tree["sample_stats"]
        assert set(stats.data_vars) == {"acceptance_rate", "diverging", "is_accepted", "num_diverged"}
        assert (stats["acceptance_rate"].values == trace.info.acceptance_prob.T.numpy()).all()
        assert stats["diverging"].dtype == bool

    def test_what_record_returned(self):
        pytest.importorskip("arviz_base", reason="the extra 'diagnostics' is not installed")

        def run(record):
            return sample(MALA(0.05), quartic, X, 5, seed=KEY, record=record)

        assert run(lambda state, info: state.energy).to_arviz()["posterior"]["x"].shape == (6, 5)
        both = run(lambda state, info: {"energy": state.energy, "first": state.x[:, 0]}).to_arviz()["posterior"]
        assert set(both.data_vars) == {"energy", "first"}
        with pytest.raises(TypeError, match=r"Trace.to_arviz: x must be a tensor or a list of dicts of tensors"):
            run(lambda state, info: float(state.energy.mean())).to_arviz()
        with pytest.raises(TypeError, match=r"Trace.to_arviz: x must be of shape \(num_kept, num_chains, ...\)"):
            run(lambda state, info: state.energy.mean()).to_arviz()

    def test_statistics_of_something_else(self):
        """What is not of each chain at each draw is left out."""
        pytest.importorskip("arviz_base", reason="the extra 'diagnostics' is not installed")

        class Info(NamedTuple):
            of_chains: torch.Tensor
            of_pairs: torch.Tensor
            inner: tuple[torch.Tensor, ...]

        info = Info(torch.zeros(20, 6), torch.zeros(20, 2), (torch.zeros(20, 6),))
        assert set(Trace(torch.zeros(20, 6, 3), None, info).to_arviz()["sample_stats"].data_vars) == {"of_chains"}
        assert "sample_stats" not in Trace(torch.zeros(20, 6), None, None).to_arviz().children

    def test_without_arviz(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "arviz_base", None)
        with pytest.raises(ImportError, match=r"Trace.to_arviz: needs arviz-base \(pip install ebmcore\[diagnostics\]\)"):
            sample(SAMPLER, quartic, X, 5, seed=KEY).to_arviz()
