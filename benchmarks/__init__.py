"""What neurostore costs, beside what people would otherwise write.

``python -m benchmarks`` runs every case and prints a table for each. A case pits neurostore against
one peer (bare h5py, stock xarray), block after block in the same run, so that a busy machine slows
both alike; figures are ratios. Nothing here is a test: no case fails because a machine is slow.
"""
