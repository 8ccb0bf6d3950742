"""From features to scores, and how sure a score is."""
