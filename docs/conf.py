"""Configuration of the documentation: Sphinx, with MyST for Markdown and the furo theme."""

import inspect
import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import raysnap

project = "raysnap"
author = "the raysnap developers"
copyright = "the raysnap developers"  # noqa: A001 - Sphinx wants this name
try:
    release = metadata.version("raysnap")
except metadata.PackageNotFoundError:
    release = "unknown"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"raysnap {release}"

myst_heading_anchors = 4
myst_enable_extensions = ["fieldlist"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
default_role = "code"  # docstrings write `name`, as Markdown does
napoleon_use_ivar = True
nitpicky = True
# An offline build has no inventory of other packages, and types that are not public have no page.
nitpick_ignore_regex = [(r"py:.*", r".*")]


def public_names() -> str:
    """Return the API reference: one entry per name in `raysnap.__all__`."""
    entries = []
    for name in raysnap.__all__:
        member = getattr(raysnap, name)
        if hasattr(member, "model_fields"):  # a pydantic model, whose signature nobody can read
            entries.append(f"````{{py:class}} raysnap.{name}\n{model_entry(name, member)}\n````")
        elif name == "__version__":
            entries.append("```{py:data} raysnap.__version__\nThe version of raysnap that is installed.\n```")
        elif inspect.isclass(member):
            entries.append(f"```{{eval-rst}}\n.. autoclass:: raysnap.{name}\n   :members:\n```")
        else:
            directive = "autofunction" if callable(member) else "autodata"
            entries.append(f"```{{eval-rst}}\n.. {directive}:: raysnap.{name}\n```")
    return "\n\n".join(entries)


def model_entry(name: str, model: type) -> str:
    """Return what the API reference says of a pydantic model: its docstring, and its fields or a link to them."""
    purpose, _, rest = (inspect.getdoc(model) or "").partition("\n")
    example = f"```pycon\n{rest.strip()}\n```" if rest.strip().startswith(">>>") else rest.strip()
    if name.endswith("Config"):
        kind = name.removesuffix("Config").lower()
        fields = f"[Its keys](configuration.md#kind-{kind}) are those of a job file."
    else:
        fields = "\n".join(
            f"- `{field}`" + (f": {details.description}" if details.description else "")
            for field, details in model.model_fields.items()
        )
    return "\n\n".join(part for part in (purpose, example, fields) if part)


def setup(app) -> None:
    """Put the API reference in place of its mark in api.md."""

    def fill_in(_app, document: str, source: list[str]) -> None:
        if document == "api":
            source[0] = source[0].replace("<!-- public names -->", public_names())

    app.connect("source-read", fill_in)
