"""`casstore serve`: the models of a store behind the Hub's read API, and a page to look at them. README.md has the details."""
