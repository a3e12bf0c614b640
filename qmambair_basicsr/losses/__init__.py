"""Losses against a teacher network; pixel losses (L1, Charbonnier) are BasicSR's own registered classes.

The recipes' Charbonnier sqrt(d^2 + 0.001^2) is ``{type: CharbonnierLoss, eps: 1.0e-6}``: BasicSR adds ``eps`` itself
under the root, not its square.
"""
