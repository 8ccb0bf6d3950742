"""Laws as tests that other code can run on parts of its own: so far, those of a place for stores; needs pytest."""
