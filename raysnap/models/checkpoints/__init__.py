"""Checkpoints as other tools write them: which files are one model, what is in them, which architecture it is."""
