"""Operators with more than one implementation, each in its own folder ``ops/<op>/``.

``__init__.py`` holds the public function, ``reference.py`` the plain PyTorch formulation that every other backend is
tested against, ``native.py`` the C++ library for CPUs and ``triton.py`` the GPU kernels; ``onnx.py`` is what takes its
place inside ``backend.exporting()``. Nothing outside this folder imports a backend. ``python -m qmambair_basicsr.ops`` prints which backends this machine has, and why not the others.
"""
