"""casstore inside other tools. Nothing else in casstore imports this package."""
