#!/usr/bin/env bash
# lightning 2.6.6 with torch 2.15.0: a checkpoint that holds a `pathlib.Path` among its saved hyperparameters is written without a
# word and can't be loaded again by `load_from_checkpoint` as it stands: that now leaves `weights_only` to torch, which refuses
# the path. The same module with the path as text is loaded. So a team's older checkpoints may be unreadable to their maker.
set -euo pipefail

folder="$(mktemp -d)"
trap 'rm -rf -- "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check 'lightning==2.6.6' 'torch==2.15.0' >&2
cat >checkpoints.py <<'PY'
import pathlib
import pickle

import lightning
import torch


class Model(lightning.LightningModule):
    def __init__(self, data):
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Linear(2, 2)

    def training_step(self, batch, index):
        return self.net(batch[0]).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


items = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(4, 2)), batch_size=2)
for data in ("photos", pathlib.Path("photos")):
    trainer = lightning.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    trainer.fit(Model(data), items)
    trainer.save_checkpoint("model.ckpt")
    try:
        Model.load_from_checkpoint("model.ckpt")
        print(type(data).__name__, "loaded")
    except pickle.UnpicklingError:
        print(type(data).__name__, "refused")
PY
found="$(venv/bin/python checkpoints.py 2>/dev/null)"
printf 'lightning 2.6.6: type of a hyperparameter, and what load_from_checkpoint made of it:\n%s\n' "$found"
[[ $found == $'str loaded\nPosixPath refused' ]] || {
    echo "changed: expected the text loaded and the path refused" >&2
    exit 1
}
