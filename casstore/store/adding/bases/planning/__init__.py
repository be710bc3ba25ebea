"""Which base is looked at, which one is the best, and how it predicts the chunks of a file."""
