"""The closed choices that configurations and the command line share."""

from typing import Literal

Method = Literal["baseline", "shift", "alsatian", "shared", "nested"]
Proxy = Literal["linear", "sgd_linear", "knn", "hscore", "logme"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
TrackerName = Literal["mlflow", "wandb"]
