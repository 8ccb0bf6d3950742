"""The options of a search, each with its bounds: one model for the command line, the API, workers and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias, TypedDict

from pydantic import Field, ValidationError

from raysnap.config.choices import AskedMethod, Precision, Proxy
from raysnap.config.folders import AnyFolder
from raysnap.config.messages import describe_faults
from raysnap.config.parts import ShapesConfig
from raysnap.config.strict import Section
from raysnap.errors import UsageError

Count: TypeAlias = Annotated[int, Field(ge=1)]
EdgePx: TypeAlias = Annotated[int, Field(ge=16, le=4096)]
Tolerance: TypeAlias = Annotated[float, Field(ge=0, le=1)]

DEFAULT_TOLERANCE = 0.01
DEFAULT_MAX_CANDIDATES = 64
DEFAULT_NUM_TRAIN = 8000
DEFAULT_NUM_TEST = 2000  # of so many, the standard error of an accuracy is at most 0.011
MAX_BUDGET_S = 1e7


class SearchOptions(Section):
    """How a search picks its candidates, what it tries them on, and what it may use for it.

    >>> options = raysnap.SearchOptions(method="shared", num_train=8)
    >>> raysnap.rank_snapshots("store", "shapes-shape-a", options).method
    'shared'
    """

    method: AskedMethod = Field(
        "auto",
        description="Which candidates are tried on how many items; auto is `shared` or `nested`, whichever is forecast "
        "to answer sooner on this device.",
    )
    proxy: Proxy = Field(
        "linear", description="The score that predicts fine-tuned accuracy; `sgd_linear` is for comparisons."
    )
    tolerance: Tolerance = Field(
        DEFAULT_TOLERANCE,
        description="Accuracy on new items that the winner of `nested` may lose, and what work is worth: twice as many "
        "forward passes as were made so far must gain as much, fewer passes less, or the search ends. For proxies that "
        "are no accuracy, a part of the difference between the best and the worst candidate.",
    )
    num_train: Count | None = Field(
        DEFAULT_NUM_TRAIN,
        description="Most training items to fit probes on; of more, a stratified subset is taken. None is all.",
    )
    num_test: Count | None = Field(
        DEFAULT_NUM_TEST,
        description="Most items to score on; of more, a stratified subset is taken. None is all.",
    )
    spares_test: bool = Field(
        False,
        description="Whether test items are left for a later fine-tune to be tested on: where there is no val, a fifth "
        "of train is scored on, which a fine-tune with the same seed holds out as well.",
    )
    image_size: EdgePx | None = Field(
        None,
        description="Edge of the square that models see, in pixels; None is what each snapshot was trained with.",
    )
    time_budget_s: Annotated[float, Field(gt=0, le=MAX_BUDGET_S)] | None = Field(
        None,
        description="Seconds in which to answer, from the call on: the search uses as many items as fit, and begins no "
        "rung that would not; None is no limit.",
    )
    budget_bytes: Count | None = Field(None, description="Bound on the activations held at once; None is no limit.")
    memory_bytes: Count | None = Field(
        None,
        description="Bound on the memory for blocks, activations, features and pixels together; blocks that don't fit "
        "are read again. None is most of what is free where blocks compute: the GPU's memory, or the machine's.",
    )
    where: str | None = Field(
        None, description="Which snapshots are candidates, e.g. `architecture == 'resnet18' and accuracy > 0.8`."
    )
    max_candidates: Count | None = Field(
        DEFAULT_MAX_CANDIDATES,
        description="How many snapshots are tried at most; of more, their manifests and the scores of their relatives "
        "say which. None is no limit.",
    )
    use_records: bool = Field(
        True,
        description="Whether what came of fine-tunes on other datasets, as the store's records tell, counts in the "
        "ranking beside the proxy.",
    )
    seed: int = Field(0, ge=0, description="Seed of the drawn items and of the probes.")
    data_dir: AnyFolder = Field(Path("data"), description="Folder of the named datasets.")
    shapes: ShapesConfig | None = Field(None, description="How the shapes datasets are drawn; None is their default.")
    device: str | None = Field(None, description="A torch device; None is the GPU where there is one.")
    precision: Precision = Field(
        "auto",
        description="Number format of the blocks; auto is bfloat16 where the hardware supports it, float16 on older "
        "GPUs, else fast_float32, which on a CPU takes fewer products than torch's own float32 and differs by 1e-5."
        " Probes are always fitted in float64.",
    )
    deterministic: bool = Field(
        False, description="Use deterministic kernels only, so that equal searches get equal scores on a GPU too."
    )
    workers: Count = Field(
        1,
        description="Processes that compute; more than one are actors of the running Ray, each with a GPU, where there "
        "are any, and its share of the CPUs.",
    )
    feature_cache_bytes: int = Field(
        0,
        ge=0,
        description="Bound on the features and activations kept beside the dataset for later searches of it; 0 neither "
        "reads nor keeps any, and no answers either.",
    )

    @classmethod
    def of(cls, options: SearchOptions | None, keywords: Mapping[str, Any]) -> SearchOptions:
        """Return `options`, or the defaults, with these keywords in their place.

        Raises:
            UsageError: a keyword is unknown or its value is out of bounds.
        """
        given = dict(options or {}) | dict(keywords)
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise UsageError(describe_faults(error, cls, given)) from None


class SearchKeywords(TypedDict, total=False):
    """The fields of `SearchOptions` as keyword arguments, for type checkers and completion."""

    method: AskedMethod
    proxy: Proxy
    tolerance: float
    num_train: int | None
    num_test: int | None
    spares_test: bool
    image_size: int | None
    time_budget_s: float | None
    budget_bytes: int | None
    memory_bytes: int | None
    where: str | None
    max_candidates: int | None
    use_records: bool
    seed: int
    data_dir: Path
    shapes: ShapesConfig | None
    device: str | None
    precision: Precision
    deterministic: bool
    workers: int
    feature_cache_bytes: int
