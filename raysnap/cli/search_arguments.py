"""The options of `raysnap search`, each with its help; their bounds are those of `SearchOptions`."""

from __future__ import annotations

from typing import Annotated

import typer

from raysnap.cli.console import duration, name_or_path
from raysnap.config.choices import AskedMethod, Proxy
from raysnap.humanize import parse_bytes


def _bytes(text: str) -> int:
    """Return the bytes that the text says."""
    try:
        return parse_bytes(str(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


Data = Annotated[
    str,
    typer.Option(
        "--data", metavar="DATASET", parser=name_or_path, help="Name of a dataset, or path of an ImageFolder."
    ),
]
SearchMethod = Annotated[AskedMethod, typer.Option("--method", help="How candidates are compared; see above.")]
SearchProxy = Annotated[
    Proxy,
    typer.Option(
        "--proxy",
        help="Score computed from frozen features, an estimate of fine-tuned accuracy; sgd_linear, the published one, "
        "diverges on features of large norm.",
    ),
]
NumTrain = Annotated[
    int, typer.Option("--num-train", metavar="N", min=0, help="Fit probes on at most N train items; 0: all.")
]
NumTest = Annotated[int, typer.Option("--num-test", metavar="N", min=0, help="Score on at most N test items; 0: all.")]
ImageSize = Annotated[
    int | None,
    typer.Option("--image-size", metavar="PIXELS", min=16, help="Side length of images; default: each snapshot's own."),
]
TimeBudget = Annotated[
    float | None,
    typer.Option(
        "--time-budget",
        metavar="TIME",
        parser=duration,
        help="Answer within this time from the start of the command, such as 30s, with as many items as fit; "
        "default: no limit.",
    ),
]
BudgetBytes = Annotated[
    int | None,
    typer.Option(
        "--budget",
        metavar="BYTES",
        parser=_bytes,
        help="Memory limit for intermediate activations, such as 500MB; default: that of --memory.",
    ),
]
MemoryBytes = Annotated[
    int | None,
    typer.Option(
        "--memory",
        metavar="BYTES",
        parser=_bytes,
        help="Memory limit for blocks, activations and features, such as 3GiB; default: most of what is free.",
    ),
]
Tolerance = Annotated[
    float,
    typer.Option(
        "--tolerance",
        metavar="ACCURACY",
        min=0,
        max=1,
        help="Accuracy on new items that the winner of `nested` may lose, and that twice the work so far must gain.",
    ),
]
Where = Annotated[
    str | None,
    typer.Option("--where", metavar="EXPRESSION", help='Rank only some snapshots, such as "accuracy > 0.8".'),
]
MaxCandidates = Annotated[
    int,
    typer.Option(
        "--max-candidates",
        metavar="N",
        min=0,
        help="Try at most N snapshots, chosen by their manifests and by what their relatives score; 0: all.",
    ),
]
UseRecords = Annotated[
    bool,
    typer.Option(
        "--records/--no-records",
        help="Whether what came of fine-tunes on other datasets, as the store's records tell, counts in the rank.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", min=0, help="Seed for drawing items and fitting probes.")]
Workers = Annotated[
    int, typer.Option("--workers", metavar="N", min=1, help="Number of processes; more than 1 run as Ray actors.")
]
FeatureCacheBytes = Annotated[
    int,
    typer.Option(
        "--feature-cache",
        metavar="BYTES",
        parser=_bytes,
        show_default="1 GiB",
        help="Size limit of the feature cache on disk, which speeds up later searches; 0 turns it off.",
    ),
]
Explain = Annotated[
    bool,
    typer.Option("--explain", help="Also show what was forecast, what came, the shared blocks and each rung."),
]
