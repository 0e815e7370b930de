"""Networks: functions from scaled images to named heads. They know nothing of diffusion."""

from diffusion_jax.nets.unet import ADM, SONG, BlockStyle, UNet, adm, ddpmpp, ncsnpp

__all__ = ["ADM", "SONG", "BlockStyle", "UNet", "adm", "ddpmpp", "ncsnpp"]
