"""Networks registered in BasicSR's ARCH_REGISTRY (``*_arch.py``) and the blocks they share (plain modules).

Full-precision graphs only know *where* a quantizer may sit (module names, scan sites); what sits there is decided by
the ``quant`` option and put in place by :func:`qmambair_basicsr.layers.prepare.prepare`.
"""
