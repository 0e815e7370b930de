"""Data: sources of images, which examples make up a step, augmentation."""
