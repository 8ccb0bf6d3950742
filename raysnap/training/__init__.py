"""One fine-tune with verified freezing; no Ray."""
