"""DPDM on the 8×8 digits."""

from diffusion_jax import presets


def get_config():
  c = presets.small()
  c.method = "dpdm"
  c.init_from = "runs/edm_digits"
  c.optimizer.update(learning_rate=1e-4, warmup_images=0, beta1=0.0, beta2=0.99)
  c.train.update(batch_size=32, num_steps=1_000, checkpoint_every=250, sample_every=500)
  c.sampling.update(sampler="dpdm", grid="dpdm", num_steps=5)
  return c
