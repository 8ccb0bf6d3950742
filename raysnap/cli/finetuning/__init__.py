"""Commands from a dataset to a model: finetune, recommend, predict."""
