"""Where a store is kept: what it needs of a place, and the places that give it."""
