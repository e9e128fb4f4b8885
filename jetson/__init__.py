"""The device: what board this is, how it is, and whether it can run a bundle now."""
