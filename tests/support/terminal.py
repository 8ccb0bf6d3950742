"""Tables as a terminal shows them."""

from rich.console import Console


def shown(table) -> list[list[str]]:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return [[cell for cell in line.split("  ") if cell.strip()] for line in capture.get().splitlines()]
