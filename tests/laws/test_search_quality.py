"""Whether a search finds the planted candidate, on the snapshots that the quickstart trained.

`benchmarks/quality.py` draws more, from several targets, and fine-tunes for real; `docs/search_quality.md` has its
figures.
"""

import numpy as np
import pytest

from raysnap.search import search
from raysnap.store.store import Store

pytestmark = pytest.mark.timeout(900)

TARGET, RELATED = "shapes-orientation-b", "shapes-orientation-a"


@pytest.mark.parametrize("draw", range(4))
def test_the_candidate_of_the_related_task_ranks_first(quickstart, draw):
    store = Store.open(quickstart.directory / "store")
    related = [one.id for one in store.manifests() if one.dataset.name == RELATED]
    unrelated = [one.id for one in store.manifests() if one.dataset.name != RELATED]
    assert len(related) == 2 and len(unrelated) == 7
    rng = np.random.default_rng(draw)
    planted, others = related[draw % 2], rng.choice(unrelated, 4, replace=False)
    where = " or ".join(f"id == '{snapshot}'" for snapshot in (planted, *others))
    data_dir = quickstart.directory / "data"
    result = search(store, TARGET, data_dir=data_dir, where=where, seed=draw, num_train=160, num_test=120)
    assert result.forecast.asked == "auto" and result.proxy == "linear", "the defaults"
    assert result.num_candidates == 5
    assert result.ranking[0].snapshot == planted
