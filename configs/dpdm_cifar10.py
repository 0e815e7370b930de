"""DPDM on CIFAR-10: a pupil of NVIDIA's published EDM network.

  python experiments/prepare_data.py cifar-10-python.tar.gz --out=datasets/cifar10-32x32.zip
  python experiments/train.py --config=configs/dpdm_cifar10.py:uncond --workdir=runs/dpdm_cifar10
  python experiments/evaluate.py --workdir=runs/dpdm_cifar10 --nfe=4,5,6,7,8 --num_images=50000 \\
    --reference=cifar10-32x32.npz --inception=weights-inception-2015-12-05-6726825d.pth

After the colon: uncond or cond. The teacher is edm-cifar10-32x32-uncond-vp.pkl, or -cond-vp.pkl, in the working
directory (--config.init_from for another; a run of configs/edm_cifar10.py:uncond-vp-F or cond-vp-F does as well). The
paper's FID, unconditional, by NFE 4 to 8: 7.16, 3.85, 2.77, 2.72, 2.68; its teacher's there 95.25 to 28.69. 100,000
alternations of 128 images. Not trained here.
"""

from diffusion_jax import config as config_lib
from diffusion_jax import presets


def get_config(row="uncond"):
  (classes,) = presets.row(row, ("uncond", "cond"))
  c = config_lib.default()
  c.data.update(name="zip", path="datasets/cifar10-32x32.zip", resolution=32, channels=3)
  c.data.num_classes = 10 if classes == "cond" else 0
  c.data.augment = 0.12  # the teacher's network has inputs for it; the pupil is trained without
  presets.set_dpdm(c, f"edm-cifar10-32x32-{classes}-vp.pkl")
  c.train.batch_size = 128
  c.train.num_steps = 100_000
  return c
