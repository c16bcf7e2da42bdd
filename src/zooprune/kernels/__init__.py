"""GPU kernels, one file each. A kernel takes plain tensors and knows nothing of what calls it."""
