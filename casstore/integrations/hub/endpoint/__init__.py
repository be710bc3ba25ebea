"""What the Hub's API answers: models and files of a store, as values and as bytes."""
