"""What lies between two integer operators, in one pass over rows: residual sums, LayerNorm, activations, gates,
quantizers, statistics of DLS; the scan's delta from codes; channel attention.

Only the C++ kernels do it in one pass (``native.py``); the lowered network in eager PyTorch is the reference. A grid is
float32 (4,): step, shift, lowest and highest code, constant or written by a pass before. Codes are stored as
uint8 ``code + zero``.
"""
