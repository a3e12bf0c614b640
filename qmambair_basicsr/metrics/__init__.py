"""Metrics registered beside BasicSR's, LPIPS and shift-tolerant LPIPS, and the checks in front of all of them.

PSNR and SSIM are BasicSR's own (``calculate_psnr``, ``calculate_ssim``); the option files set ``crop_border`` and
``test_y_channel`` as each task's protocol says. ``perceptual`` builds the networks of the two LPIPS; ``strict_metric``
checks the arguments and images of every registered metric.
"""
