"""Which refs a collection deletes by policy: those that are old or unused, and cache entries that make a store too large."""
