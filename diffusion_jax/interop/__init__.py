"""Published checkpoints -> parameters. Nothing here needs PyTorch or runs code from a file."""
