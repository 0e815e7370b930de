"""Super-resolution ×4 of DIV2K by decoupled diffusion, in the 128×128×3 latents of 512×512 crops by KL-f4.

  python experiments/encode.py --config=configs/ddm_superres_div2k.py:images --autoencoder=kl-f4.ckpt --flip \\
    --out=datasets/div2k_superres
  python experiments/train.py --config=configs/ddm_superres_div2k.py --workdir=runs/ddm_superres_div2k
  python experiments/evaluate.py --workdir=runs/ddm_superres_div2k --nfe=5,10 --data=folder:DIV2K_valid_HR \\
    --task_path=DIV2K_valid_LR_bicubic/X4 --transform=crops

DIV2K_train_HR and DIV2K_train_LR_bicubic/X4 are the folders of its zips. The batch of 12 goes on 1, 2, 3, 4, 6 or 12
devices.

kl-f4.ckpt: the weights of latent diffusion's autoencoder of that name; swin_b-68c6b09e.pth: torchvision's ImageNet
weights. Width, batch, rate and number of updates are the paper's Table 6, weight decay, clipping and averages those of
its code; where attention is, and dropout, are choices. Not trained here.
"""

from diffusion_jax import presets


def get_config(row="latents"):
  images = {"data.name": "folder", "data.path": "DIV2K_train_HR", "data.transform": "crops"}
  images["task.path"] = "DIV2K_train_LR_bicubic/X4"
  network = {"network.channels": 128, "network.channel_mult": (1, 2, 4, 4), "train.batch_size": 12}
  presets.row(row, ("images", "latents"))
  return presets.paper_task(row, "superres", images, "datasets/div2k_superres", 512, network, 5e-5)
