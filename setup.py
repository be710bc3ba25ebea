"""Builds the compiled kernels, which are optional; everything else is in pyproject.toml."""

import os
from glob import glob

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "casstore._kernels",
            ["casstore/_kernels.c", *sorted(glob("casstore/*/native/*.c"))],
            depends=sorted(glob("casstore/codecs/native/*.h")),
            # A product and a sum in one instruction round once, and the format says that they round twice. Names that files
            # share must not meet those of other libraries.
            extra_compile_args=[
                "-O3",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-fvisibility=hidden",
            ]
            if os.name == "posix"
            else ["/fp:strict"],
            optional=True,
        )
    ]
)
