"""Installation of qmambair_basicsr. Nothing here imports torch: `pip install -e .` builds in its own environment."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

from setuptools import Distribution, find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).resolve().parent


def version() -> str:
    """``__version__`` of the package, read without importing it."""
    text = (HERE / "qmambair_basicsr" / "__init__.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE).group(1)


def requirements() -> list[str]:
    """The lines of requirements.txt that name a package."""
    lines = (HERE / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


EXTRAS = {
    "gpu": ["mamba-ssm>=2.2"],
    "metrics": ["lpips>=0.1.4,<0.2", "stlpips_pytorch>=0.0.2,<0.1"],
    "export": ["onnx>=1.16", "onnxruntime>=1.17", "onnxscript>=0.7"],
    "deploy": ["tensorrt>=10", "pycuda>=2024.1"],
    "plot": ["matplotlib>=3.7,<4"],
    "dev": [
        # builds engines without a GPU: tests look at which layers become int8
        'tensorrt-rtx-cu13>=1.7.1,<1.8; platform_system == "Linux" and platform_machine == "x86_64"',
        "hypothesis>=6.100",
        "jsonschema>=4.20",
        "pytest>=8",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "ruff>=0.11",
        # its interpreter runs the GPU kernels in the tests of machines without a GPU
        'triton>=3.0,<4; platform_system == "Linux" and platform_machine == "x86_64"',
    ],
}


class BuildWithKernels(build_py):
    """Copies the package and the sources of the CUDA kernels, builds the CPU kernels; without a compiler PyTorch remains."""

    def run(self) -> None:
        super().run()
        spec = importlib.util.spec_from_file_location("_kernels", HERE / "qmambair_basicsr" / "ops" / "build.py")
        kernels = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(kernels)
        root = HERE if self.editable_mode else Path(self.build_lib)
        if not self.editable_mode:  # compiled where they are used, see ops/cuda_library.py
            cuda = root / "qmambair_basicsr" / "ops" / "cuda_sources"
            shutil.copytree(HERE / "kernels" / "cuda", cuda, dirs_exist_ok=True)
        try:
            message = kernels.build(root / "qmambair_basicsr" / "ops" / kernels.LIBRARY)
        except kernels.BuildError as err:
            message = f"CPU kernels not built, the PyTorch path will be used: {err}"
        sys.stderr.write(f"qmambair_basicsr: {message}\n")


class PlatformDistribution(Distribution):
    """A wheel that carries the CPU kernels belongs to one platform."""

    def has_ext_modules(self) -> bool:
        """Whether the wheel holds compiled code."""
        return True


setup(
    name="qmambair_basicsr",
    version=version(),
    description="Quantized Mamba networks for image restoration, as a BasicSR plugin",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["qmambair_basicsr", "qmambair_basicsr.*"]),
    package_data={"qmambair_basicsr": ["assets/*", "data/files/*", "inference/*.html", "studies/data/*.csv"]},
    cmdclass={"build_py": BuildWithKernels},
    distclass=PlatformDistribution,
    install_requires=requirements(),
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "qmambair = qmambair_basicsr.tools.inference:main",
            "qmambair-train = qmambair_basicsr.train:main",
            "qmambair-test = qmambair_basicsr.test:main",
        ]
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
)
