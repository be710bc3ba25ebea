"""Machines on a network that is slow on purpose: namespaces of this machine, a shaped link between them, real servers."""
