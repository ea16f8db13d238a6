"""The native chains of Potts models as torch ops."""

from typing import Any

import pytest
import torch

from ebmcore import Key, ops
from ebmcore.energies import Potts


def arguments(**changes: Any) -> dict[str, Any]:
    tables, _ = Potts.lattice((4, 4), 3, 1.0)._integers(torch.device("cpu"))
    return {"kernel": "gibbs", "states": torch.ones(2, 16, dtype=torch.uint8), "tables": tables, "key": Key(1), "num_steps": 2, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kernel": "wolff"}, ValueError, "kernel must be one of gibbs"),
        ({"scan": "spiral"}, ValueError, "scan must be one of raster"),
        ({"balancing": "cubic"}, ValueError, "balancing must be one of sqrt"),
        ({"scan": "checkerboard"}, ValueError, "order must be given"),
        ({"order": torch.arange(16, dtype=torch.int32)}, ValueError, "order must be given"),
        ({"states": torch.ones(2, 16, dtype=torch.int64)}, TypeError, "states must be uint8"),
        ({"states": torch.ones(2, 20, dtype=torch.uint8)}, ValueError, "offsets must have 21 elements, got 17"),
        ({"states": torch.ones(16, 2, dtype=torch.uint8).T}, ValueError, "states must be contiguous"),
        ({"key": torch.zeros(2)}, TypeError, "key must be an ebmcore.Key"),
    ],
)
def test_bad_input_leaves_the_states_alone(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    call = arguments(**changes)
    with pytest.raises(error, match=message):
        ops.potts_chain_(**call)
    assert bool((call["states"] == 1).all())


@pytest.mark.parametrize("kernel", ["gibbs", "metropolis", "gwg"])
def test_opcheck(kernel: str) -> None:
    tables = arguments()["tables"]
    states = torch.ones(2, 16, dtype=torch.uint8)
    rest = (Key(1).tensor, *tables[:-1], None, 0, 0, tables.max_degree, 2)
    torch.library.opcheck(getattr(torch.ops.ebmcore, f"potts_{kernel}").default, (states, *rest))


def test_states_that_were_written_to_have_a_new_version() -> None:
    call = arguments()
    version = call["states"]._version
    ops.potts_chain_(**call)
    assert call["states"]._version > version
