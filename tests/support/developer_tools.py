"""Scripts of `tools/`, loaded as modules."""

import importlib.util
import sys
from types import ModuleType

from tests.support import ROOT


def load_tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"tools_{name}", ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = tool  # where dataclasses look for the module of their annotations
    spec.loader.exec_module(tool)
    return tool
