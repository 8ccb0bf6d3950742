"""Write the parts of docs/ that follow from the code: lists of files, of commands' options and of configuration keys.

`python tools/write_docs.py` rewrites these parts in place; with `--check` it changes nothing, names the pages that are
out of date and ends with exit code 1 if there are any. A part is what is between two marks in a page,
`<!-- begin NAME ... -->` and `<!-- end NAME -->`.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raysnap"
# Keys that the models require but fill in themselves where a job file leaves them out.
DERIVED = {"mode": "by `metric`", "shortlist": "by `preset`", "train": "by `preset`", "space": "by `preset`"}
KINDS = ("generate", "synthesize", "sweep", "finetune", "bench", "quickstart")


def main(arguments: list[str] | None = None) -> int:
    """Rewrite or check every generated part; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a page is out of date")
    is_check = parser.parse_args(arguments).check
    sys.path.insert(0, str(ROOT))
    outdated = []
    for page, name, lines in (
        ("architecture.md", "files", list_files()),
        ("command_line.md", "commands", list_commands()),
        ("configuration.md", "keys", list_keys()),
    ):
        path = ROOT / "docs" / page
        before = path.read_text(encoding="utf-8")
        after = replace_part(before, name, "\n".join(lines))
        if after != before:
            outdated.append(f"docs/{page}")
            if not is_check:
                path.write_text(after, encoding="utf-8")
    for page in outdated:
        outcome = "is out of date; run python tools/write_docs.py" if is_check else "rewritten"
        sys.stdout.write(f"write_docs: {page} {outcome}\n")
    return 1 if outdated and is_check else 0


def replace_part(page: str, name: str, content: str) -> str:
    """Return `page` with the part `name` replaced by `content`."""
    part = re.compile(rf"(<!-- begin {name}\b[^\n]*-->\n).*?(<!-- end {name} -->)", re.DOTALL)
    page, count = part.subn(lambda found: f"{found[1]}\n{content.strip()}\n\n{found[2]}", page)
    if count != 1:
        raise SystemExit(f"write_docs: expected one part {name!r}, found {count}")
    return page


# The list of files


def list_files() -> Iterator[str]:
    """Yield a heading and a table per room: every file with the first line of its docstring."""
    rooms = sorted({path.parent for path in PACKAGE.rglob("*.py")}, key=lambda room: room.relative_to(PACKAGE).parts)
    for room in rooms:
        files = sorted(path for path in room.glob("*.py") if room == PACKAGE or path.name != "__init__.py")
        if not files:
            continue
        yield f"### {room.relative_to(ROOT)}\n"
        yield f"{first_line(room / '__init__.py')}\n"
        yield "| file | what it is for |"
        yield "| --- | --- |"
        yield from (f"| `{path.relative_to(ROOT)}` | {cell(first_line(path))} |" for path in files)
        yield ""


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


# The options of commands


def list_commands() -> Iterator[str]:
    """Yield a heading, the purpose and the arguments and options of every command."""
    import typer

    from raysnap.cli.app import app

    yield from _list_command("raysnap", typer.main.get_command(app))


def _list_command(name: str, command: Any) -> Iterator[str]:
    children = getattr(command, "commands", {})
    for child_name, child in children.items():
        yield from _list_command(f"{name} {child_name}", child)
    if children:
        return
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    hints = get_type_hints(inspect.unwrap(command.callback))
    usage = " ".join([name, *map(_placeholder, arguments)])
    yield f"### {name}\n"
    yield f"`{usage}{' [OPTIONS]' if options else ''}`\n"
    yield f"{' '.join((command.help or '').split())}\n"
    yield "| argument or option | default | meaning |"
    yield "| --- | --- | --- |"
    for argument in arguments:
        yield f"| `{_name(argument)}` | {_default(argument)} | {cell(argument.help or '')} |"
    for option in options:
        choices = get_args(hints[option.name]) if get_origin(hints[option.name]) is Literal else ()
        known = f" One of {', '.join(f'`{choice}`' for choice in choices)}." if choices else ""
        written = f"{', '.join(option.opts)} {option.metavar or ''}".rstrip()
        yield f"| `{written}` | {_default(option)} | {cell((option.help or '') + known)} |"
    yield ""


def _name(argument: Any) -> str:
    return argument.metavar or argument.name.upper()


def _placeholder(argument: Any) -> str:
    return _name(argument) if argument.required else f"[{_name(argument)}]..."


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if isinstance(shown := getattr(parameter, "show_default", None), str):
        return shown
    is_plain = isinstance(parameter.default, str | int | float | Path) and not isinstance(parameter.default, bool)
    value = parameter.default
    return f"`{value:g}`" if is_plain and isinstance(value, float) else f"`{value}`" if is_plain else ""


# The keys of job files


def list_keys() -> Iterator[str]:
    """Yield a table of keys per kind of job, then one per part that several kinds have."""
    from raysnap import config

    parts: dict[str, dict] = {}
    for kind in KINDS:
        schema = getattr(config, f"{kind.capitalize()}Config").model_json_schema()
        parts |= schema["$defs"]
        yield from _list_section(f"kind: {kind}", schema)
    jobs = {f"{kind.capitalize()}Config" for kind in KINDS}
    for name in sorted(parts.keys() - jobs):
        yield from _list_section(name, parts[name])


def _list_section(title: str, schema: dict) -> Iterator[str]:
    yield f"### {title}\n"
    yield f"{' '.join(schema.get('description', '').partition('>>>')[0].split())}\n"
    yield "| key | value | default | meaning |"
    yield "| --- | --- | --- | --- |"
    for key, field in schema["properties"].items():
        if key != "kind":
            yield f"| `{key}` | {_value(field)} | {_field_default(key, field, schema)} | {cell(_meaning(field))} |"
    yield ""


def _meaning(field: dict) -> str:
    return field.get("description") or ("See there." if _part_of(field) else "")


def _part_of(field: dict) -> str | None:
    return field["$ref"].rpartition("/")[2] if "$ref" in field else None


def _field_default(key: str, field: dict, schema: dict) -> str:
    if key in schema.get("required", ()):
        return DERIVED.get(key, "required")
    default = field.get("default")
    if isinstance(default, dict) or "default" not in field:
        return ""
    return f"`{json.dumps(default, ensure_ascii=False)}`"


def _value(field: dict) -> str:
    """Say in words what a key may be set to."""
    if part := _part_of(field):
        kind = part.removesuffix("Config").lower()
        return f"[{part}](#{f'kind-{kind}' if kind in KINDS else part.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_value(choice) for choice in field["anyOf"]))
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    match field.get("type"):
        case "null":
            return "`null`"
        case "array":
            return f"list of {_plural(_value(field['items']))}" if "items" in field else "list of values"
        case "object":
            inner = field.get("additionalProperties")
            return f"mapping to {_plural(_value(inner))}" if isinstance(inner, dict) else "mapping"
        case "integer" | "number" as kind:
            return ("whole number" if kind == "integer" else "number") + _bounds(field)
        case "boolean":
            return "`true` or `false`"
        case "string":
            return "path" if field.get("format") == "path" else "text"
        case _:
            return "any value"


def _plural(value: str) -> str:
    return re.sub(r"\b(number|path|value|mapping|list)\b", r"\1s", value)


def _bounds(field: dict) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {field[key]:,}".removesuffix(".0") for key, sign in signs.items() if key in field]
    return f" {' and '.join(found)}" if found else ""


def cell(text: str) -> str:
    """Return text that fits into one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
