"""Draws seeds 0 to 20 from a workdir on all hosts, as a program: images and initial noise into OUT.npz.

  python tests/training/draw.py WORKDIR OUT [COORDINATOR NUM_PROCESSES PROCESS_ID]
"""

import sys

import jax
import numpy as np

workdir, out, *hosts = sys.argv[1:]
if hosts:
  jax.distributed.initialize(hosts[0], int(hosts[1]), int(hosts[2]))

from diffusion_jax import mesh, sampling  # noqa: E402
from diffusion_jax.training import checkpoint  # noqa: E402

config = checkpoint.read_config(workdir)
method, variables = checkpoint.load_for_inference(workdir)
seeds = np.arange(21)  # more than the devices divide
images = sampling.generate_together(config, method, variables, seeds)
share = mesh.host_share(len(seeds))
share = np.append(share, share[: -len(share) % jax.local_device_count()])
noise = method.process.prior(mesh.spread(sampling.keys_of(share)), (8, 8, 1), 80.0)
noise = mesh.gather_hosts(np.asarray(noise))
numbers = mesh.gather_hosts(share)
if jax.process_index() == 0:
  np.savez(out, images=images, noise=noise[np.unique(numbers, return_index=True)[1]])
