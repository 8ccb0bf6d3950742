#!/usr/bin/env bash
# scipy 1.17.1: `weightedtau` takes a NaN for the lowest value, without a warning, and returns a finite correlation: the same as
# with minus infinity in its place. `kendalltau` of the same values returns NaN. And it weighs large values most, as its
# documentation says, so that of losses the worst count most: a list of losses has to be negated first.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'scipy==1.17.1' 'numpy==2.4.6' >&2
cat >correlations.py <<'PY'
import warnings

import numpy as np
from scipy.stats import kendalltau, weightedtau

warnings.simplefilter("error")
scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
accuracies = np.array([0.2, 0.1, 0.4, 0.3, np.nan])
lowest = np.where(np.isnan(accuracies), -np.inf, accuracies)
found = weightedtau(scores, accuracies).statistic
is_lowest = found == weightedtau(scores, lowest).statistic
print(np.isfinite(found), is_lowest, np.isnan(kendalltau(scores, accuracies).statistic))
PY
found="$(venv/bin/python correlations.py)"
printf 'scipy 1.17.1: weightedtau with a NaN is finite, equals that with -inf, kendalltau is NaN: %s\n' "$found"
[[ $found == "True True True" ]] || {
    echo "changed: expected True True True" >&2
    exit 1
}
