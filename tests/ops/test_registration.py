"""What every op of the library owes torch."""

import re
from pathlib import Path

import torch

import ebmcore


def test_every_op_is_opchecked() -> None:
    """Each has a line in a list, or a call, of torch.library.opcheck beside the tests of its family."""
    assert ebmcore.ops
    registered = {str(schema.name).removeprefix("ebmcore::") for schema in torch._C._jit_get_all_schemas() if schema.name.startswith("ebmcore::")}
    files = [path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    text = "\n".join(text for text in files if "torch.library.opcheck(" in text)
    named = set(re.findall(r"torch\.ops\.ebmcore\.(\w+)\.default", text)) | set(re.findall(r"\"(\w+)(?:, \w+)?\"", text))
    families = set(re.findall(r"f\"(\w+_)\{kernel\}\"\)\.default", text))
    missing = {name for name in registered - named if not any(name.startswith(family) and name.removeprefix(family) in named for family in families)}
    assert not missing
