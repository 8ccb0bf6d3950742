"""Tables of the store commands on a terminal."""

import sys

from raysnap.store.store import Store


def test_on_a_narrow_terminal_ids_and_figures_stay_whole(here, capsys):
    from rich.console import Console

    from raysnap.cli.store_tables import snapshots_table

    store = Store.open("store")
    console = Console(width=60, file=sys.stdout)
    console.print(snapshots_table(store.summaries()))
    out = capsys.readouterr().out
    assert all(manifest.id[:12] in out for manifest in store.manifests())
    assert "44.8\u00a0MB" in out and "0.750" in out
