"""BasicSR models: ``MambaIRModel`` (full precision, tiled tests, exact resume) and ``QATModel`` (quantized).

Modules ending in ``_model.py`` register themselves; the others hold one concept each: ``tiling`` (which pixels a
network sees at once), ``data_order`` (which sample comes
next, with which random draws) and ``random_stream`` (counter-based random state).
"""
