"""What every op of the library owes torch."""

import re
from pathlib import Path

import torch

import ebmcore

CHECKS = re.compile(
    r"^OPCHECKS = \{.*?^\}"  # lists of names and arguments
    r"|^OPCHECKS\[[^\n]*"
    r"|(?:^@[^\n]*\n)*^def test_opcheck\(.*?(?=^\S|\Z)",  # and the tests themselves, with what they are parametrised by
    re.DOTALL | re.MULTILINE,
)


def names_in(text: str) -> set[str]:
    names = set(re.findall(r"torch\.ops\.ebmcore\.(\w+)\.default", text))
    quoted = set(re.findall(r"\"(\w+)(?:, \w+)?\"", text))
    prefixes = ["", *re.findall(r"f\"(\w+_)\{", text)]
    return names | {prefix + name for prefix in prefixes for name in quoted}


def test_every_op_is_opchecked() -> None:
    """Each is named in a list of torch.library.opcheck, or in a test_opcheck, beside the tests of its family."""
    assert ebmcore.ops
    registered = {str(schema.name).removeprefix("ebmcore::") for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ebmcore::")}
    checked = set()
    for path in Path(__file__).parent.glob("test_*.py"):
        text = path.read_text()
        if path != Path(__file__) and "torch.library.opcheck(" in text:
            checked |= set().union(*(names_in(part) for part in CHECKS.findall(text)))
    assert not registered - checked
