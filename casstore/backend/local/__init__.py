"""A store in a local directory; durability is here and nowhere else."""
