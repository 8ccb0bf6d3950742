"""Fine-tune a population of image models on Ray, store every shared block once, search for the best start.

`raysnap.__all__` lists the public API; everything else may change without notice. A notebook looks into a store, asks
it for the best start for a dataset, and loads that snapshot as a torchvision model:

>>> import raysnap
>>> store = raysnap.Store.open("store")
>>> store.to_pandas()[["architecture", "num_blocks", "num_classes"]]
         architecture  num_blocks  num_classes
0  mobilenet_v3_small          14            4
1  mobilenet_v3_small          14            4
2  mobilenet_v3_small          14            4
>>> result = raysnap.rank_snapshots(store, "shapes-shape-a", method="shared")
>>> model = store.load_model(result.ranking[0].snapshot)

Names are imported on first use, so `import raysnap` takes milliseconds and imports neither torch nor Ray.
"""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raysnap.bench.run_bench import bench as run_bench
    from raysnap.config.bench import BenchConfig
    from raysnap.config.jobs import GenerateConfig, SynthesizeConfig
    from raysnap.config.load import load_config
    from raysnap.config.quickstart import QuickstartConfig
    from raysnap.config.search_options import SearchOptions
    from raysnap.config.sweep import FinetuneConfig, SweepConfig
    from raysnap.datasets.dataset import Dataset, open_dataset
    from raysnap.errors import (
        ArchitectureError,
        BlockDamaged,
        ClusterError,
        ConfigError,
        DataError,
        RaysnapError,
        RunLocked,
        SnapshotNotFound,
        StoreDamaged,
        StoreError,
        StoreUnreadable,
        UsageError,
        WeightsError,
    )
    from raysnap.jobs.finetune import finetune
    from raysnap.jobs.generate import generate
    from raysnap.jobs.predict import Predictions, predict, transform_of
    from raysnap.jobs.sweep import sweep
    from raysnap.jobs.synthesize import synthesize
    from raysnap.report.page import write_report
    from raysnap.search.ranking import search as rank_snapshots
    from raysnap.search.recommend import recommend
    from raysnap.search.result import SearchResult
    from raysnap.store.exchange.weights_in import import_snapshot
    from raysnap.store.exchange.weights_out import export_snapshot
    from raysnap.store.manifest import DatasetRecord, Manifest
    from raysnap.store.preprocessing import Preprocessing, TextPreprocessing
    from raysnap.store.store import Store

    __version__: str

__all__ = [
    "ArchitectureError",
    "BenchConfig",
    "BlockDamaged",
    "ClusterError",
    "ConfigError",
    "DataError",
    "Dataset",
    "DatasetRecord",
    "FinetuneConfig",
    "GenerateConfig",
    "Manifest",
    "Predictions",
    "Preprocessing",
    "QuickstartConfig",
    "RaysnapError",
    "RunLocked",
    "SearchOptions",
    "SearchResult",
    "SnapshotNotFound",
    "Store",
    "StoreDamaged",
    "StoreError",
    "StoreUnreadable",
    "SweepConfig",
    "SynthesizeConfig",
    "TextPreprocessing",
    "UsageError",
    "WeightsError",
    "__version__",
    "export_snapshot",
    "finetune",
    "generate",
    "import_snapshot",
    "load_config",
    "open_dataset",
    "predict",
    "rank_snapshots",
    "recommend",
    "run_bench",
    "sweep",
    "synthesize",
    "transform_of",
    "write_report",
]

# The module of each public name, and its name there where that differs.
_HOMES = {
    "BenchConfig": "raysnap.config.bench",
    "Dataset": "raysnap.datasets.dataset",
    "DatasetRecord": "raysnap.store.manifest",
    "FinetuneConfig": "raysnap.config.sweep",
    "GenerateConfig": "raysnap.config.jobs",
    "Manifest": "raysnap.store.manifest",
    "Predictions": "raysnap.jobs.predict",
    "Preprocessing": "raysnap.store.preprocessing",
    "TextPreprocessing": "raysnap.store.preprocessing",
    "QuickstartConfig": "raysnap.config.quickstart",
    "SearchOptions": "raysnap.config.search_options",
    "SearchResult": "raysnap.search.result",
    "Store": "raysnap.store.store",
    "SweepConfig": "raysnap.config.sweep",
    "SynthesizeConfig": "raysnap.config.jobs",
    "export_snapshot": "raysnap.store.exchange.weights_out",
    "finetune": "raysnap.jobs.finetune",
    "generate": "raysnap.jobs.generate",
    "import_snapshot": "raysnap.store.exchange.weights_in",
    "load_config": "raysnap.config.load",
    "open_dataset": "raysnap.datasets.dataset",
    "predict": "raysnap.jobs.predict",
    "rank_snapshots": "raysnap.search.ranking:search",
    "recommend": "raysnap.search.recommend",
    "run_bench": "raysnap.bench.run_bench:bench",
    "sweep": "raysnap.jobs.sweep",
    "synthesize": "raysnap.jobs.synthesize",
    "transform_of": "raysnap.jobs.predict",
    "write_report": "raysnap.report.page",
}

if not TYPE_CHECKING:  # a type checker takes any name from a module with a `__getattr__`

    def __getattr__(name):
        if name == "__version__":
            from raysnap.system import package_version

            value = package_version("raysnap") or "unknown"
        elif name in __all__:
            module, _, attribute = _HOMES.get(name, "raysnap.errors").partition(":")
            value = getattr(_import_module(module), attribute or name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
