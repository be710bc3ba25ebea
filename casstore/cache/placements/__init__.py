"""Plain files on this machine: where models and attempts of passes are, which are in use, which are deleted."""
