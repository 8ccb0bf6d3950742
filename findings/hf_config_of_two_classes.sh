#!/usr/bin/env bash
# transformers 5.24.0: the config.json that `save_pretrained` writes never says `num_labels`, and for a model of two classes it
# says nothing about classes at all: `id2label` is written only where there are not exactly two. A reader that takes the
# number of classes from the file, instead of from the shape of the head, finds none there; `from_pretrained` puts two back.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'transformers==5.24.0' >&2
cat >classes.py <<'PY'
import json

from transformers import ViTConfig

for num_classes in (1, 2, 3):
    ViTConfig(num_labels=num_classes).save_pretrained(f"of_{num_classes}")
    with open(f"of_{num_classes}/config.json") as file:
        written = json.load(file)
    read = ViTConfig.from_pretrained(f"of_{num_classes}").num_labels
    print(num_classes, "num_labels" in written, len(written.get("id2label", ())), read)
PY
found="$(TRANSFORMERS_VERBOSITY=error venv/bin/python classes.py 2>/dev/null)"
printf 'transformers 5.24.0: classes, num_labels in the file, classes named in it, num_labels read back:\n%s\n' "$found"
[[ $found == $'1 False 1 1\n2 False 0 2\n3 False 3 3' ]] || {
    echo "changed: expected no num_labels anywhere, and names for one and three classes only" >&2
    exit 1
}
