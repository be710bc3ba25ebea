"""Adding files: which ones, what is known of them, how they are cut and ingested."""
