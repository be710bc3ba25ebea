"""Where models and files of runs lie on this machine."""
