"""Objects of a store: where they lie, how they are read, verified and published. Knows nothing of models or refs."""
