from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ebmcore
from ebmcore import ops
from ebmcore.gradients import energy_and_grad
from ebmcore.losses import contrastive_divergence
from ebmcore.training import CheckpointError, ReplayBuffer, fit, load_checkpoint
from ebmcore.types import DivergenceError, Key


@dataclass(frozen=True)
class Descent:
    """The least that `fit` asks of a sampler: noisy gradient descent, one step of the key for each of its own."""

    step_size: float = 0.1
    effective_temperature: float = 0.5

    def __call__(self, energy, x, num_steps, *, seed=None):
        key = Key.from_seed(seed, x.device)
        for _ in range(num_steps):
            _, grad = energy_and_grad(energy, x)
            x = x - self.step_size * grad + 0.1 * ops.normal(tuple(x.shape), key=key, stream=ops.Stream.PROPOSAL, dtype=x.dtype, device=x.device)
            key = key.advance()
        return x


class Writer:
    def __init__(self):
        self.rows = []

    def add_scalar(self, tag, value, step):
        self.rows.append((tag, value, step))


def network(device="cpu") -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).to(device)


DATA = torch.randn(20, 2, generator=torch.Generator().manual_seed(1))


def run(energy=None, data=DATA, *, buffer=True, device="cpu", **options):
    energy = network(device) if energy is None else energy
    buffer = ReplayBuffer(12, (2,), reinit_prob=0.2, low=-1, high=1, seed=5, device=device) if buffer is True else buffer
    defaults = {"loss": contrastive_divergence, "sampler": Descent(), "num_steps": 3, "batch_size": 6, "seed": 9, "log_every": 2}
    result = fit(energy, data, buffer=buffer, **(defaults | options))
    return result, buffer


def bits(result, buffer) -> list[Tensor]:
    tensors = [*result.energy.state_dict().values()]
    tensors += [value for slot in result.optimizer.state.values() for value in slot.values()]
    tensors += [] if result.ema is None else [*result.ema.state_dict().values()]
    tensors += [] if buffer is None else [buffer.values, buffer.key.tensor]
    return [tensor.clone() for tensor in tensors]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    assert len(a) == len(b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_equals_the_loop_written_out(device):
    """Seven iterations of everything at once, bit for bit; 20 rows make 3 batches of 6 and 2 rows sit out."""
    optimizer = torch.optim.SGD((energy := network(device)).parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    options = {"ema_decay": 0.7, "max_grad_norm": 0.5, "data_noise_std": 0.3, "scheduler": scheduler, "num_iterations": 7}
    result, buffer = run(energy, device=device, optimizer=optimizer, seed=Key(9, step=4, first_chain=2), **options)

    energy = network(device)
    optimizer = torch.optim.SGD(energy.parameters(), lr=0.1, momentum=0.9)
    chains = ReplayBuffer(12, (2,), reinit_prob=0.2, low=-1, high=1, seed=5, device=device)
    average, history = None, []
    for t in range(7):
        epoch, index = divmod(t, 3)
        u = ops.uniform((20,), key=Key(9, 4 + epoch, 2), stream=ops.Stream.DATA, dtype=torch.float64)
        order = sorted(range(20), key=lambda row: u[row].item())[6 * index : 6 * index + 6]
        x = DATA[order].to(device)
        x = x + 0.3 * ops.normal((6, 2), key=Key(9, 4 + t, 2).to(device), stream=ops.Stream.DATA, first_block=1)
        slots, x0 = chains.draw(6)
        energy.eval()
        x_model = Descent()(energy, x0, 3, seed=Key(9, 4 + 3 * t, 2))
        energy.train()
        optimizer.zero_grad()
        loss = contrastive_divergence(energy, x, x_model)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(energy.parameters(), 0.5)
        energy.eval()
        gap = energy(x_model).double().mean() - energy(x).double().mean()
        energy.train()
        if t % 2 == 0:
            history.append({"iteration": t, "loss": loss.item(), "energy_gap": gap.item(), "grad_norm": norm.item()})
            history[-1] |= {"num_reinit": chains.num_reinit.item(), "effective_temperature": 0.5}
        chains.put(slots, x_model)
        optimizer.step()
        if t % 2 == 1:
            optimizer.param_groups[0]["lr"] *= 0.5
        parameters = [p.detach().clone() for p in energy.parameters()]
        average = parameters if average is None else [torch.lerp(a, p, 1 - 0.7) for a, p in zip(average, parameters, strict=True)]
    assert_equal([*result.energy.parameters()], [*energy.parameters()])
    assert_equal([*result.ema.buffers()], [*energy.buffers()])
    assert_equal([buffer.values, buffer.key.tensor], [chains.values, chains.key.tensor])
    torch.testing.assert_close([*result.ema.parameters()], average, rtol=1e-6, atol=1e-7)
    assert not result.ema.training
    assert result.energy.training
    assert result.history == history
    assert max(row["grad_norm"] for row in history) > 0.5


@pytest.mark.parametrize("with_buffer", [True, False])
@pytest.mark.parametrize("first", [1, 4, 6, 10])
def test_resumed_run_equals_the_uninterrupted_one(tmp_path, first, with_buffer):
    options = {"ema_decay": 0.9, "max_grad_norm": 1.0, "data_noise_std": 0.1, "num_iterations": 10}

    def parts():
        optimizer = torch.optim.Adam((energy := network()).parameters(), lr=0.01)
        return {"energy": energy, "optimizer": optimizer, "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)}

    whole, whole_buffer = run(buffer=with_buffer or None, **parts(), **options)
    path = tmp_path / "run.ckpt"
    run(buffer=with_buffer or None, checkpoint=path, **parts(), **(options | {"num_iterations": first}))
    # Everything that the resumed run begins with is different, and its seed is the checkpoint's.
    other = parts()
    nn.init.ones_(other["energy"][0].weight)
    buffer = ReplayBuffer(12, (2,), reinit_prob=0.2, low=-1, high=1, seed=77) if with_buffer else None
    resumed, _ = run(buffer=buffer, checkpoint=path, resume=True, **other, **(options | {"seed": None}))
    assert_equal(bits(whole, whole_buffer), bits(resumed, buffer))
    assert resumed.history == whole.history
    assert_equal([*load_checkpoint(path)["objects"]["energy"].values()], [*whole.energy.state_dict().values()])


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
import test_fit
calls = 0
class Killer(test_fit.Descent):
    def __call__(self, *args, **kwargs):
        global calls
        calls += 1
        if calls == 6: os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(*args, **kwargs)
test_fit.run(sampler=Killer(), num_iterations=9, checkpoint=sys.argv[2], checkpoint_every=2)
"""


def test_killed_run_goes_on(tmp_path):
    path = tmp_path / "run.ckpt"
    command = [sys.executable, "-c", KILLED, os.path.dirname(__file__), str(path)]
    killed = subprocess.run(command, capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert load_checkpoint(path)["values"]["iteration"] == 4
    whole = run(num_iterations=9)
    assert_equal(bits(*run(num_iterations=9, checkpoint=path, resume=True)), bits(*whole))


@pytest.mark.parametrize("storage", [None, "uint8"])
def test_langevin_resumes_to_the_same_bits(tmp_path, device, storage):
    """The real sampler on small images, and the chains it leaves."""
    langevin = ebmcore.Langevin(step_size=10.0, noise_std=0.005, clamp=(0, 1), clip_grad=0.01)
    data = ops.uniform((32, 1, 4, 4), key=Key(1))
    path = tmp_path / "run.ckpt"

    def images(num_iterations: int, **options):
        torch.manual_seed(0)
        energy = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(1), nn.Linear(16, 1), nn.Flatten(0)).to(device)
        buffer = ReplayBuffer(40, (1, 4, 4), storage=storage, seed=3, device=device)
        return run(energy, data, buffer=buffer, sampler=langevin, num_steps=5, batch_size=8, num_iterations=num_iterations, ema_decay=0.9, **options)

    whole = images(7)
    images(3, checkpoint=path)
    assert_equal(bits(*images(7, checkpoint=path, resume=True)), bits(*whole))
    assert whole[0].history[0]["effective_temperature"] == langevin.effective_temperature


def test_resume_without_a_file_begins(tmp_path):
    path = tmp_path / "run.ckpt"
    assert_equal(bits(*run(num_iterations=3, checkpoint=path, resume=True)), bits(*run(num_iterations=3)))
    run(num_iterations=2, checkpoint=path)  # without resume the file is replaced
    assert load_checkpoint(path)["values"]["iteration"] == 2


def test_resume_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    run(num_iterations=3, checkpoint=path)
    for options, match in [
        ({"seed": 10}, r"seed must be \[10, 0, 0\], got \[9, 0, 0\]"),
        ({"batch_size": 5}, "batch_size must be 5, got 6"),
        ({"data": DATA[:19]}, "num_data must be 19, got 20"),
        ({"ema_decay": 0.9}, r"must hold \['average', 'buffer', 'energy', 'optimizer'\], got \['buffer', 'energy', 'optimizer'\]"),
        ({"buffer": None}, r"must hold \['energy', 'optimizer'\]"),
    ]:
        energy = network()
        before = [p.clone() for p in energy.parameters()]
        with pytest.raises(CheckpointError, match=match):
            run(energy, num_iterations=4, checkpoint=path, resume=True, **options)
        assert_equal([*energy.parameters()], before)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="truncated"):
        run(num_iterations=4, checkpoint=path, resume=True)


def test_without_a_buffer_chains_start_at_the_data():
    starts, seen = [], []

    class Spy(Descent):
        def __call__(self, energy, x, num_steps, *, seed=None):
            starts.append(x.clone())
            return super().__call__(energy, x, num_steps, seed=seed)

    def loss(energy, x_data, x_model):
        seen.append(x_data.clone())
        return contrastive_divergence(energy, x_data, x_model)

    run(buffer=None, sampler=Spy(), loss=loss, num_epochs=2, data_noise_std=0.1)
    assert_equal(starts, seen)
    assert len(seen) == 6


def test_each_epoch_visits_each_row_at_most_once():
    data = torch.stack([torch.arange(20.0), torch.zeros(20)], 1)
    seen = []

    def loss(energy, x_data, x_model):
        seen.append(x_data[:, 0].tolist())
        return contrastive_divergence(energy, x_data, x_model)

    run(data=data, loss=loss, num_epochs=3)
    epochs = [[*seen[i], *seen[i + 1], *seen[i + 2]] for i in (0, 3, 6)]
    assert all(len(set(epoch)) == 18 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def assert_is_as_before(energy: nn.Module) -> None:
    assert [module.training for module in energy] == [True, False, True, True, True]
    assert [p.requires_grad for p in energy.parameters()] == [True, False, True, True, True, True]


def mixed() -> nn.Module:
    energy = network()
    energy[1].eval()
    energy[0].bias.requires_grad_(False)
    return energy


def test_sampling_sees_eval_mode_and_leaves_no_trace():
    class Spy(Descent):
        def __call__(self, energy, x, num_steps, *, seed=None):
            assert not any(module.training for module in energy.modules())
            assert not any(p.requires_grad for p in energy.parameters())
            before = [None if p.grad is None else p.grad.clone() for p in energy.parameters()]
            running = energy[1].running_mean.clone()
            x = super().__call__(energy, x, num_steps, seed=seed)
            assert all(p.grad is b or torch.equal(p.grad, b) for p, b in zip(energy.parameters(), before, strict=True))
            assert torch.equal(energy[1].running_mean, running)
            return x

    def loss(energy, x_data, x_model):
        assert_is_as_before(energy)
        return contrastive_divergence(energy, x_data, x_model)

    energy = mixed()
    bias = energy[0].bias.clone()
    run(energy, sampler=Spy(), loss=loss, num_iterations=4)
    assert_is_as_before(energy)
    assert torch.equal(energy[0].bias, bias)


@pytest.mark.parametrize("error", [KeyboardInterrupt, DivergenceError, OSError])
def test_errors_leave_modes_parameters_chains_and_file(tmp_path, error):
    class Breaks(Descent):
        calls = 0

        def __call__(self, energy, x, num_steps, *, seed=None):
            Breaks.calls += 1
            if Breaks.calls == 6:
                raise DivergenceError("chain 3 is not finite", chains=[3], step=1, last_energies=[2.0]) if error is DivergenceError else error("stop")
            return super().__call__(energy, x, num_steps, seed=seed)

    energy, path = mixed(), tmp_path / "run.ckpt"
    buffer = ReplayBuffer(12, (2,), reinit_prob=0.2, low=-1, high=1, seed=5)
    with pytest.raises(error) as caught:
        run(energy, buffer=buffer, sampler=Breaks(), num_iterations=10, checkpoint=path, checkpoint_every=2)
    assert_is_as_before(energy)
    if error is DivergenceError:
        assert str(caught.value) == "fit: iteration 5: chain 3 is not finite"
        assert (caught.value.chains, caught.value.step, caught.value.last_energies) == ([3], 1, [2.0])
    expected, chains = run(mixed(), num_iterations=5)
    assert_equal([*energy.parameters(), buffer.values], [*expected.energy.parameters(), chains.values])
    assert load_checkpoint(path)["values"]["iteration"] == 4
    resumed = run(mixed(), num_iterations=10, checkpoint=path, resume=True)
    assert_equal(bits(*resumed), bits(*run(mixed(), num_iterations=10)))


def test_non_finite_losses_and_gradients_raise():
    class Root(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            return grad * math.nan

    def bad_gradient(energy, x_data, x_model):
        return Root.apply(contrastive_divergence(energy, x_data, x_model))

    def bad_energy(energy, x_data, x_model):
        return contrastive_divergence(lambda x: energy(x) / 0.0, x_data, x_model)

    for loss, match in [(bad_gradient, "fit: iteration 0: the gradient of the parameters has norm nan"), (bad_energy, "fit: iteration 0: contrast")]:
        energy, buffer = network(), ReplayBuffer(12, (2,), seed=5)
        before = [p.clone() for p in energy.parameters()] + [buffer.values]
        with pytest.raises(DivergenceError, match=match):
            run(energy, buffer=buffer, loss=loss, num_iterations=3)
        assert_equal([*energy.parameters(), buffer.values], before)

    class Infinite(Descent):
        def __call__(self, energy, x, num_steps, *, seed=None):
            return torch.where(torch.arange(len(x))[:, None] == 2, math.inf, x)

    with pytest.raises(DivergenceError, match=r"fit: iteration 0: ReplayBuffer.put: x must be finite, got NaN or infinity in 1 rows \[2\]"):
        run(sampler=Infinite(), loss=lambda energy, x_data, x_model: energy(x_data).mean(), num_iterations=1)


def test_telemetry_goes_to_the_writer_and_the_history():
    writer = Writer()
    result, _ = run(num_iterations=5, writer=writer, log_every=3, progress=True)
    assert [row["iteration"] for row in result.history] == [0, 3]
    tags = ["loss", "energy_gap", "grad_norm", "num_reinit", "effective_temperature"]
    assert writer.rows == [(tag, row[tag], row["iteration"]) for row in result.history for tag in tags]
    assert all(0 <= row["num_reinit"] <= 6 for row in result.history)
    bare = run(num_iterations=1, buffer=None, sampler=Descent(effective_temperature=None))[0].history
    assert bare[0].keys() == {"iteration", "loss", "energy_gap", "grad_norm"}


def test_logging_does_not_change_the_run():
    assert_equal(bits(*run(num_iterations=6, log_every=1, writer=Writer())), bits(*run(num_iterations=6, log_every=100)))


def test_torchs_generator_is_touched_only_for_a_missing_seed():
    energy, buffer = network(), ReplayBuffer(12, (2,), seed=5)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(energy, buffer=buffer, num_iterations=3, data_noise_std=0.1, ema_decay=0.9)
    assert torch.equal(torch.get_rng_state(), before)
    runs = []
    for _ in range(2):
        energy = network()
        torch.manual_seed(3)
        runs.append(bits(*run(energy, seed=None, num_iterations=3)))
    assert_equal(*runs)
    other = bits(*run(seed=None, num_iterations=3))
    assert not torch.equal(other[0], runs[0][0])


def test_it_learns_a_gaussian():
    """E(x) = a·x²/2 + b·x, data N(1.5, 0.5²): unadjusted chains of step h have variance 1 / (a - h·a²/2), so a tends to where that is the data's."""

    class Quadratic(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(0.0))

        def forward(self, x):
            return (self.a * x.square() / 2 + self.b * x).flatten()

    @dataclass(frozen=True)
    class Langevin(Descent):
        def __call__(self, energy, x, num_steps, *, seed=None):
            key = Key.from_seed(seed)
            for _ in range(num_steps):
                noise = ops.normal(tuple(x.shape), key=key, stream=ops.Stream.PROPOSAL)
                x, key = x - 0.05 * energy_and_grad(energy, x)[1] + math.sqrt(0.1) * noise, key.advance()
            return x

    data = 1.5 + 0.5 * ops.normal((2000, 1), key=Key(3))
    energy, buffer = Quadratic(), ReplayBuffer(2000, (1,), reinit_prob=0.0, seed=1)
    optimizer = torch.optim.SGD(energy.parameters(), lr=2.0)
    options = {"num_steps": 10, "batch_size": 500, "num_iterations": 300, "ema_decay": 0.95, "seed": 2}
    result = fit(energy, data, loss=contrastive_divergence, sampler=Langevin(), buffer=buffer, optimizer=optimizer, **options)
    mean, variance = data.mean().item(), data.var().item()
    a = (1 - math.sqrt(1 - 2 * 0.05 / variance)) / 0.05
    assert result.ema.a.item() == pytest.approx(a, rel=0.05)
    assert -result.ema.b.item() / result.ema.a.item() == pytest.approx(mean, abs=0.02)


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (TypeError, "energy must be a torch.nn.Module, got function", {"energy": lambda x: x.sum(1)}),
        (ValueError, "energy must have parameters, got none", {"energy": nn.Flatten(0)}),
        (TypeError, "data must be a torch.Tensor, got list", {"data": [[0.0, 1.0]]}),
        (ValueError, r"data must have shape \(num_data, \*event\) with num_data >= batch_size 6, got \(5, 2\)", {"data": DATA[:5]}),
        (ValueError, r"data must have shape .*, got \(\)", {"data": DATA[0, 0]}),
        (ValueError, "data must be finite, got NaN or infinity", {"data": DATA / 0}),
        (ValueError, r"buffer must have event shape, dtype and device .*, got \(\(3,\)", {"buffer": ReplayBuffer(9, (3,), seed=0)}),
        (ValueError, "buffer must have .*float32.*, got .*float64", {"buffer": ReplayBuffer(9, (2,), dtype=torch.float64, seed=0)}),
        (ValueError, "buffer must hold at least batch_size 6 chains, got 5", {"buffer": ReplayBuffer(5, (2,), seed=0)}),
        (ValueError, "batch_size must be an int >= 1, got 0", {"batch_size": 0}),
        (TypeError, "num_steps must be an int >= 1, got 1.5", {"num_steps": 1.5}),
        (ValueError, "num_steps must be an int >= 1, got 0", {"num_steps": 0}),
        (ValueError, "num_epochs must be an int >= 1, got 0", {"num_epochs": 0}),
        (ValueError, "num_iterations must be an int >= 1, got -1", {"num_iterations": -1}),
        (ValueError, "log_every must be an int >= 1, got 0", {"log_every": 0}),
        (ValueError, r"ema_decay must be in \[0, 1\), got 1.0", {"ema_decay": 1.0}),
        (ValueError, r"ema_decay must be in \[0, 1\), got nan", {"ema_decay": math.nan}),
        (ValueError, "max_grad_norm must be > 0, got 0", {"max_grad_norm": 0}),
        (ValueError, "max_grad_norm must be > 0, got nan", {"max_grad_norm": math.nan}),
        (ValueError, "data_noise_std must be finite and >= 0, got -1", {"data_noise_std": -1}),
        (ValueError, "data_noise_std must be finite and >= 0, got inf", {"data_noise_std": math.inf}),
        (ValueError, "checkpoint must be given for checkpoint_every and resume, got None", {"checkpoint_every": 5}),
        (ValueError, "checkpoint must be given for checkpoint_every and resume, got None", {"resume": True}),
        (ValueError, "checkpoint_every must be an int >= 1, got 0", {"checkpoint": Path("run.ckpt"), "checkpoint_every": 0}),
        (ValueError, "checkpoint must be in a folder that exists", {"checkpoint": Path("no/such/folder/run.ckpt")}),
    ],
)
def test_bad_input(error, match, options):
    with pytest.raises(error, match="fit: " + match):
        run(**({"num_iterations": 1} if "num_epochs" not in options else {}) | options)
