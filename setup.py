"""Builds the compiled kernels, which are optional; everything else is in pyproject.toml."""

import os

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "casstore._kernels",
            ["casstore/_kernels.c", "casstore/_huffman.c"],
            depends=["casstore/_huffman.h"],
            extra_compile_args=["-O3"] if os.name == "posix" else [],
            optional=True,
        )
    ]
)
