"""What trainers write, made by the trainers themselves; `tools/trainer_checkpoints.py` imports each of it."""
