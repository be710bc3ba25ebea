"""The page on a store: HTML that the server makes whole, without scripts."""
