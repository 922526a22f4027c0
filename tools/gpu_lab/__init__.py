"""One-GPU lab: measure the paper's sizes, and run experiments side by side, on a lent machine.

    python -m tools.gpu_lab pack | run | collect        (docs/gpu.md)

The package imports nothing of this; everything that trains or selects here is the package's.
"""
