"""The lanes and bodies of Ising chains against one another, bit for bit, and against plain torch."""

import itertools
import math

import pytest
import torch
from torch import Tensor

import ebmcore
from ebmcore import Key, ops
from ebmcore.energies import Ising
from support.statistics import assert_count, assert_counts
from support.targets import assert_same_bits

KEY = Key(0x0123456789ABCDEF, step=(5 << 32) | 7, first_chain=(3 << 32) + 9)


def spins_of(num_chains: int, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return 2 * ops.bernoulli((num_chains, *shape), 0.5, key=Key(seed)).to(torch.int8) - 1


def random_graph(num_sites: int, num_edges: int, seed: int = 0) -> Ising:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.combinations(torch.arange(num_sites))
    chosen = pairs[torch.randperm(len(pairs), generator=generator)[:num_edges]]
    coupling = torch.randn(num_edges, generator=generator)
    return Ising(chosen, coupling, torch.randn(num_sites, generator=generator), num_sites=num_sites)


MODELS = {
    "torus": Ising.lattice((6, 4), 0.3, field=0.1),
    "cube": Ising.lattice((4, 2, 3), -0.2, periodic=False),
    "odd torus": Ising.lattice((5, 3), 0.4),
    "fields": Ising.lattice((4, 4), 0.3, field=torch.linspace(-1, 1, 16)),
    "graph": random_graph(23, 60),
    "dense": Ising.complete(9, torch.linspace(-1, 1, 36), torch.linspace(-1, 1, 9)),
    "no edges": Ising(torch.zeros(0, 2, dtype=torch.int64), 0.5, field=0.7, num_sites=3),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("num_chains", [1, 3, 70])
def test_gibbs_is_the_reference(name: str, num_chains: int, cpu_target: str) -> None:
    energy = MODELS[name]
    model, _ = energy._model(torch.device("cpu"))
    for order in (None, energy.graph.order):
        x = spins_of(num_chains, energy.event_shape)
        expected = ops.ising_gibbs_reference(x, model, key=KEY, num_steps=3, order=order)
        colour_offsets = None if order is None else energy.graph.colour_offsets
        num_flips = torch.zeros(num_chains, dtype=torch.int64)
        actual = ops.ising_gibbs_(x.clone(), model, key=KEY, num_steps=3, order=order, colour_offsets=colour_offsets, num_flips=num_flips)
        assert_same_bits(actual, expected, f"order {order is not None}")
        steps = [x]
        for t in range(3):
            steps.append(ops.ising_gibbs_reference(steps[-1], model, key=KEY.advance(t), num_steps=1, order=order))
        flips = sum((after != before).flatten(1).sum(1) for before, after in itertools.pairwise(steps))
        assert torch.equal(num_flips, flips)


@pytest.mark.parametrize("shape", [(128,), (4, 128), (2, 4, 130), (6, 200), (4, 514)])
def test_lanes_of_sites_are_lanes_of_chains(shape: tuple[int, ...], cpu_target: str, num_threads: int) -> None:
    shape = tuple(max(side, 4) for side in shape)
    energy = Ising.lattice(shape, 0.35, field=0.05)
    model, _ = energy._model(torch.device("cpu"))
    x, counts = spins_of(3, shape), torch.zeros(2, 3, dtype=torch.int64)
    order, colours = energy.graph.order, energy.graph.colour_offsets
    by_chains = ops.ising_gibbs_(x.clone(), model, key=KEY, num_steps=5, order=order, colour_offsets=colours, num_flips=counts[0])
    by_sites = ops.ising_gibbs_(x.clone(), model._replace(sides=shape), key=KEY, num_steps=5, num_flips=counts[1])
    assert_same_bits(by_sites, by_chains)
    assert torch.equal(counts[0], counts[1])


def test_few_chains_of_many_sites_take_no_lanes(cpu_target: str) -> None:
    shape = (4, 128, 130)  # more sites than lanes of chains are used for
    energy = Ising.lattice(shape, 0.2)
    model, _ = energy._model(torch.device("cpu"))
    x = spins_of(1, shape)
    by_body = ops.ising_gibbs_(x.clone(), model, key=KEY, num_steps=2, order=energy.graph.order)
    assert_same_bits(by_body, ops.ising_gibbs_(x.clone(), model._replace(sides=shape), key=KEY, num_steps=2))


@pytest.mark.parametrize("kind", ["raster", "random", "metropolis", "gwg", "barker"])
def test_bits_do_not_depend_on_targets_threads_batches_or_calls(kind: str, num_threads: int, cpu_target: str) -> None:
    energy = MODELS["graph"]
    model, _ = energy._model(torch.device("cpu"))

    def run(x: Tensor, key: Key, num_steps: int) -> Tensor:
        if kind == "metropolis":
            ops.ising_metropolis_(x, model, key=key, num_steps=num_steps)
        elif kind in ("gwg", "barker"):
            ops.ising_gwg_(x, model, key=key, num_steps=num_steps, balancing="sqrt" if kind == "gwg" else kind)
        else:
            ops.ising_gibbs_(x, model, key=key, num_steps=num_steps, is_random=kind == "random")
        return x

    x = spins_of(200, (23,))
    whole = run(x.clone(), KEY, 40)
    assert not torch.equal(whole, x)
    parts = torch.cat([run(x[i : i + 50].clone(), KEY.shard(i), 40) for i in range(0, 200, 50)])
    assert_same_bits(parts, whole)
    by_steps = x.clone()
    for t in range(40):
        run(by_steps, KEY.advance(t), 1)
    assert_same_bits(by_steps, whole)
    before = ebmcore._native.core.cpu_target()
    ebmcore._native.core.set_cpu_target("baseline")
    assert_same_bits(run(x.clone(), KEY, 40), whole)
    ebmcore._native.core.set_cpu_target(before)


@pytest.mark.parametrize("num_sites", [1, 15, 16, 17, 257, 4097])
def test_sum_tree_of_any_depth(num_sites: int) -> None:
    """Rings of one to three levels: proposals go where the plain computation puts them, and the chain keeps its energy right."""
    edges = torch.tensor([[i, i + 1] for i in range(num_sites - 1)]).reshape(-1, 2)
    energy = Ising(edges, 0.8, field=0.3, num_sites=num_sites)
    model, _ = energy._model(torch.device("cpu"))
    x = spins_of(64, (num_sites,))
    for t in range(6):
        before = x.clone()
        differences = energy.energy_and_differences(before)[1].double()
        weights = (differences / 2).exp()
        words = ops.philox((64, 4), key=KEY.advance(t), stream=ops.Stream.PROPOSAL).view(torch.int32).long() & 0xFFFFFFFF
        u = ((words[:, 1] << 32 | words[:, 0]) >> 12 & (1 << 52) - 1).double() * 2.0**-52
        run = ops.ising_gwg_(x, model, key=KEY.advance(t), num_steps=1)
        flipped = before.clone()
        moved = (x != before).nonzero()
        assert torch.equal(moved[:, 0], run.is_accepted.nonzero()[:, 0])
        assert torch.equal(run.num_flips, run.is_accepted.long())
        # The chains that moved: acceptance is min(1, Z / Z').
        chain, site = moved[:, 0], moved[:, 1]
        flipped[chain, site] = -flipped[chain, site]
        after = (energy.energy_and_differences(flipped)[1].double() / 2).exp()
        expected = (weights.sum(1) / after.sum(1)).clamp(max=1)[chain]
        torch.testing.assert_close(run.acceptance_sums[chain], expected, rtol=3e-6, atol=0)
        assert bool(((words[chain, 2] >> 8).double() / 2**24 <= expected + 1e-6).all())
        assert 0 <= float(u.min()) < 1


def test_gwg_draws_sites_in_proportion(cpu_target: str) -> None:
    """Independent sites with fields of their own, at the start always accepted or not by the same rule: the chi-square is of proposals."""
    energy = Ising(torch.zeros(0, 2, dtype=torch.int64), 0.0, field=torch.linspace(-1.0, 1.0, 300), num_sites=300)
    model, _ = energy._model(torch.device("cpu"))
    x = torch.ones(200_000, 300, dtype=torch.int8)
    run = ops.ising_gwg_(x, model, key=Key(3), num_steps=1)
    weights = (-torch.linspace(-1.0, 1.0, 300, dtype=torch.float64)).exp()
    accept = (weights.sum() / (weights.sum() - weights + 1 / weights)).clamp(max=1)
    counts = (x == -1).sum(0)
    assert_counts(counts, weights * accept, what="accepted flips")
    assert_count(int(run.is_accepted.sum()), len(x), float((weights * accept).sum() / weights.sum()), what="acceptance")


def test_energies_are_exact() -> None:
    for energy in MODELS.values():
        model, _ = energy._model(torch.device("cpu"))
        x = spins_of(5, energy.event_shape)
        s = x.flatten(1).double()
        couplings = (model.couplings if len(model.couplings) > 1 else model.couplings.expand(len(model.neighbours))).double()  # type: ignore[arg-type]
        matrix = torch.zeros(energy.num_sites, energy.num_sites, dtype=torch.float64)
        rows = torch.repeat_interleave(torch.arange(energy.num_sites), model.offsets.diff())  # type: ignore[union-attr]
        matrix[rows, model.neighbours.long()] = couplings  # type: ignore[union-attr]
        expected = -(0.5 * (s @ matrix * s).sum(1) + (s * model.field).sum(1)) * model.unit
        assert torch.equal(ops.ising_energy(x, model), expected)
        energies, fields = ops.ising_fields(x, model)
        assert torch.equal(energies, expected)
        assert torch.equal(fields.double(), s @ matrix + model.field)
    torus = MODELS["torus"]
    model, _ = torus._model(torch.device("cpu"))
    x = spins_of(9, (6, 4))
    assert torch.equal(ops.ising_energy(x, model), ops.ising_energy(x, model._replace(sides=(6, 4))))


def test_probabilities_at_the_ends() -> None:
    """σ of ±2000: never the other value, in a million draws; and of 0: a fair coin."""
    for field, expected in ((1000.0, 1), (-1000.0, -1)):
        energy = Ising(torch.zeros(0, 2, dtype=torch.int64), 0.0, field=field, num_sites=100)
        model, _ = energy._model(torch.device("cpu"))
        x = ops.ising_gibbs_(spins_of(100, (100,)), model, key=Key(1), num_steps=100)
        assert bool((x == expected).all())
    assert math.isclose(float(ops.ising_energy(x, model)[0]), -100 * 1000.0, rel_tol=1e-9)


def test_opcheck() -> None:
    model, _ = MODELS["graph"]._model(torch.device("cpu"))
    spins, key = spins_of(3, (23,)), KEY.tensor
    flips = torch.zeros(3, dtype=torch.int64)
    torch.library.opcheck(torch.ops.ebmcore.ising_gibbs.default, (spins, flips, key, *model[:6], [], None, None, 2, False))
    torch.library.opcheck(torch.ops.ebmcore.ising_metropolis.default, (spins, key, *model[:6], 2, 0))
    torch.library.opcheck(torch.ops.ebmcore.ising_gwg.default, (spins, key, *model[:6], 2, 0))
    torch.library.opcheck(torch.ops.ebmcore.ising_energy.default, (spins, *model[:6], [], True))


def test_bad_arguments() -> None:
    model, _ = MODELS["torus"]._model(torch.device("cpu"))
    x = spins_of(2, (6, 4))
    with pytest.raises(TypeError, match="ising_gibbs_: spins must be a contiguous int8"):
        ops.ising_gibbs_(x.float(), model, key=Key(0), num_steps=1)
    with pytest.raises(TypeError, match="contiguous int8"):
        ops.ising_gwg_(x.transpose(1, 2), model, key=Key(0), num_steps=1)
    with pytest.raises(ValueError, match="num_steps must be"):
        ops.ising_gibbs_(x, model, key=Key(0), num_steps=-1)
    with pytest.raises(ValueError, match="balancing must be one of sqrt, barker, min, max, got 'max2'"):
        ops.ising_gwg_(x, model, key=Key(0), num_steps=1, balancing="max2")
    with pytest.raises(ValueError, match="offsets must have 6 elements"):
        ops.ising_gibbs_(spins_of(2, (5,)), model, key=Key(0), num_steps=1)
    with pytest.raises(ValueError, match="neighbour lists"):
        ops.ising_metropolis_(x, model._replace(offsets=None, neighbours=None), key=Key(0), num_steps=1)
    before = x.clone()
    assert torch.equal(ops.ising_gibbs_(x, model, key=Key(0), num_steps=0), before)
    empty = torch.empty(0, 6, 4, dtype=torch.int8)
    assert ops.ising_gibbs_(empty, model, key=Key(0), num_steps=2).shape == (0, 6, 4)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ["raster", "checkerboard", "random", "metropolis", "gwg"])
def test_cuda_has_the_states_of_the_cpu(kind: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("torch finds no CUDA device")
    energy = MODELS["graph"]
    states = {}
    for device in ("cpu", "cuda"):
        model, _ = energy.to(device)._model(torch.device(device, 0) if device == "cuda" else torch.device("cpu"))
        x = spins_of(500, (23,)).to(device)
        if kind == "metropolis":
            ops.ising_metropolis_(x, model, key=KEY, num_steps=20)
        elif kind == "gwg":
            ops.ising_gwg_(x, model, key=KEY, num_steps=20)
        else:
            order = energy.graph.order.to(device) if kind == "checkerboard" else None
            ops.ising_gibbs_(x, model, key=KEY, num_steps=5, order=order, is_random=kind == "random")
        states[device] = x.cpu()
    energy.to("cpu")
    assert torch.equal(states["cpu"], states["cuda"])
