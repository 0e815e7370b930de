"""Inpainting of CelebA-HQ 256×256 by decoupled diffusion, in the 64×64×3 latents of the published KL-f4.

  python experiments/prepare_data.py celeba-hq --transform=resize --resolution=256 --out=datasets/celebahq-256x256.zip
  python experiments/encode.py --config=configs/ddm_inpaint_celebahq256.py:images --autoencoder=kl-f4.ckpt \\
    --out=datasets/celebahq256_inpaint
  python experiments/train.py --config=configs/ddm_inpaint_celebahq256.py --workdir=runs/ddm_inpaint_celebahq256
  python experiments/evaluate.py --workdir=runs/ddm_inpaint_celebahq256 --nfe=5,10 --data=folder:celeba_test \\
    --task_path=celeba_test_masks --inception=weights-inception-2015-12-05-6726825d.pth

Holes are strokes and boxes, drawn once for every image; the test's are files, which the paper takes from LaMa.

kl-f4.ckpt: the weights of latent diffusion's autoencoder of that name; swin_b-68c6b09e.pth: torchvision's ImageNet
weights. Width, batch, rate and number of updates are the paper's Table 6, weight decay, clipping and averages those of
its code; where attention is, and dropout, are choices. Not trained here.
"""

from diffusion_jax import presets


def get_config(row="latents"):
  images = {"data.name": "zip", "data.path": "datasets/celebahq-256x256.zip"}
  network = {"network.channels": 96, "network.channel_mult": (1, 2, 4, 8), "train.batch_size": 48}
  presets.row(row, ("images", "latents"))
  return presets.paper_task(row, "inpaint", images, "datasets/celebahq256_inpaint", 256, network, 4e-5)
