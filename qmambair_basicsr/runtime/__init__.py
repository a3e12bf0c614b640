"""The integer runtime: a lowered network on native CPU kernels (README.md says how it is put together)."""

from .network import NativeNetwork, RuntimeUnavailable, native_network

__all__ = ["NativeNetwork", "RuntimeUnavailable", "native_network"]
