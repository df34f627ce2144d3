"""From a path to batches: sources, splits, transforms, and randomness keyed by example."""
