"""Pages of a report as a browser reads them, and the runs and tables that tests of them share."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import torch

from raysnap.report.page import write_report
from raysnap.store.store import Store
from tests.support.report_runs import (
    trial,
)


class Page(HTMLParser):
    """The tags, attributes and text of a page, as a browser would see them."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.html = path.read_text("utf-8")
        self.feed(self.html)
        self.text = re.sub(r"\s+", " ", "".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    def values(self, key: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == key]


def render(run_dir: Path) -> Page:
    page = Page(write_report(run_dir))
    for svg in re.findall(r"<svg.*?</svg>", page.html, re.DOTALL):
        ElementTree.fromstring(svg)
    return page


def assert_harmless(page: Page) -> None:
    """Nothing but the page's own script runs, and nothing is loaded or sent."""
    assert page.tags.count("script") == 1
    assert not any(key.startswith("on") for _, key, _ in page.attributes)
    assert not {"iframe", "object", "embed", "base", "form", "foreignobject", "use", "animate"} & set(page.tags)
    assert all(value.startswith("data:image/jpeg;base64,") for value in page.values("src"))
    assert all(value.startswith(("#", "data:")) for value in page.values("href"))


def some_trials() -> list[dict]:
    sets = ["shapes-shape-a", "shapes-colour-a", "shapes-texture-a"]
    rows = [trial(n, dataset=sets[n % 3]) for n in range(10)]
    return [*rows, trial(10, status="failed"), trial(11, status="diverged")]


def put_family(store: Store, num_finetunes: int) -> list[str]:
    stem, body = {"conv1.weight": torch.zeros(64, 49)}, {"layer1.weight": torch.ones(100, 100)}
    ids = []
    for n in range(num_finetunes):
        blocks = [("stem", stem), ("layer1.0", body), ("head", {"fc.weight": torch.full((4, 8), float(n))})]
        written = store.put_snapshot(
            architecture="resnet18", blocks=[(name, store.put_block(part)) for name, part in blocks], num_classes=4
        )
        ids.append(written.manifest.id)
    return ids


def tables(run_dir: Path) -> dict[str, list[list[str]]]:
    found = {
        path.stem: list(csv.reader(io.StringIO(path.read_text("utf-8")))) for path in run_dir.glob("*_tables/*.csv")
    }
    assert found.keys() == {path.stem for path in run_dir.glob("*_tables/*.md")}
    return found
