"""Every field of a run, with its default and meaning."""

import difflib

from ml_collections import ConfigDict

from diffusion_jax.config.errors import wrong

UNSAMPLED = ("classifier", "autoencoder")  # methods that draw no images
LATENTS = "latents"  # data.name of what experiments/encode.py writes
LATENT_METHODS = ("edm", "dual_output", "decoupled")  # that run in the latent space of an autoencoder
TRANSFORMS = ("resize", "center-crop", "center-crop-wide", "center-crop-dhariwal")  # see data/transforms.py
CROPS = "crops"  # see data/crops.py
TASKS = ("superres", "inpaint", "saliency")  # see data/tasks.py


def default() -> ConfigDict:
  """Every field of a run; tuples and numbers keep the types given here."""
  c = ConfigDict()
  c.method = "edm"  # edm, dual_output, dddm, decoupled, dpdm, classifier, autoencoder
  c.seed = 0  # of everything: initialisation, order of the data, noise
  c.init_from = ""  # weights to start from: the workdir of a run, or a published EDM pickle (.pkl); dpdm's teacher.
  # dual_output with arch adm also takes OpenAI's guided-diffusion files (.pt)
  c.init_only = ()  # of these, only parameters whose paths match one of these patterns, such as "net/enc_*"; () is all
  c.hang_timeout = 1800.0  # seconds without the end of a step, compilation included, after which a host exits; 0: never

  c.data = ConfigDict()
  c.data.name = "digits"  # digits, photos, scenes (digits on photos), zip, folder, npz, tfds, latents
  c.data.path = ""  # of the zip, folder, npz or latents; for tfds the set's name, such as imagenet_resized/64x64
  c.data.data_dir = ""  # where TFDS keeps its sets; "" is its own default
  c.data.split = "train"
  c.data.transform = ""  # to the resolution: resize, center-crop, center-crop-wide, center-crop-dhariwal; crops: of a
  # folder or zip of larger images, all parts of that size; "": the images have it
  c.data.cache = "auto"  # decoded images: none, host, device; auto is host where they fit in a quarter of its memory
  c.data.resolution = 8
  c.data.channels = 1
  c.data.num_classes = 10  # 0 trains without labels
  c.data.flip = False  # mirror half of the images
  c.data.augment = 0.0  # probability of each transform of EDM's augmentation (which mirrors too); 0 turns it off, and
  # gives the network no inputs for its labels; dpdm augments only with dpdm.score_augment

  c.task = ConfigDict()  # what an image is made from; of the methods edm, dual_output, decoupled
  c.task.name = ""  # superres: its smaller copy; inpaint: itself with holes; saliency: a photograph, of which the image
  # is the mask; "": nothing
  c.task.scale = 4  # of superres
  c.task.masks = "mixed"  # of inpaint: strokes, boxes; mixed: either
  c.task.path = ""  # folder of the smaller copies, holes or photographs that belong, by their names, to the images of
  # data.path, a folder or zip; "": they are made

  c.condition = ConfigDict()  # the network that sees what an image is made from
  c.condition.encoder = "conv"  # conv: like the U-Net's own encoder; swin_t, swin_s, swin_b
  c.condition.weights = ""  # of a Swin: the published ImageNet weights (.pth); "": it starts at random
  c.condition.upsample = 1  # the condition is enlarged so many times before the encoder; Swin sees patches of 4 pixels
  c.condition.resolution = 0  # of the condition; 0: the image's, of latents that before encoding
  c.condition.channels = 0  # of the condition; 0: the image's, of saliency 3
  c.condition.cross_attention = ()  # resolutions at which the U-Net attends to the condition too

  c.latent = ConfigDict()  # diffusion of an autoencoder's latents; of data.name = "latents" alone
  c.latent.autoencoder = ""  # workdir of a run of method autoencoder, or the published KL-f4 weights (.ckpt, .pt)
  c.latent.scale = 0.0  # the network sees scale·z; 0: one over the standard deviation of z, as measured on the data
  c.latent.sha256 = ""  # of the autoencoder that encoded the data; "": what their folder says

  c.autoencoder = ConfigDict()  # method "autoencoder"; its network, KL-f4 by default
  c.autoencoder.channels = 128
  c.autoencoder.channel_mult = (1, 2, 4)
  c.autoencoder.num_blocks = 2
  c.autoencoder.latent_channels = 3
  c.autoencoder.kl_weight = 1e-6  # of KL(q(z|x) ‖ N(0, I)) an image, beside the absolute error a pixel and channel

  c.network = ConfigDict()
  c.network.arch = "ddpmpp"  # ddpmpp, ncsnpp, adm
  c.network.channels = 128
  c.network.channel_mult = (2, 2, 2)
  c.network.num_blocks = 4
  c.network.attention_resolutions = (16,)
  c.network.num_heads = 0  # of every attention; 0: ddpmpp and ncsnpp have one, adm heads of 64 channels
  c.network.dropout = 0.13
  c.network.dtype = "float32"  # of products; parameters are float32
  c.network.remat = False  # recompute activations in the backward pass
  c.network.freqs = ()  # frequencies of ncsnpp's Fourier embedding; () is the fixed draw that all networks share

  c.label_dropout = 0.0  # share of examples trained without their label, for classifier-free guidance

  c.edm = ConfigDict()  # method "edm": a row of EDM's Table 1
  c.edm.preconditioner = "edm"  # edm, vp, ve, iddpm
  c.edm.sigma_data = 0.5
  c.edm.noise = "lognormal"  # lognormal, log_uniform, vp, iddpm
  c.edm.p_mean = -1.2
  c.edm.p_std = 1.2
  c.edm.sigma_min = 0.02  # of the VE column: its law's range, and what its preconditioner is trained on
  c.edm.sigma_max = 100.0  # Song & Ermon 2020: about the largest distance between two images
  c.edm.weight = "edm"  # edm: (σ² + σ_data²)/(σσ_data)²; inverse_variance: 1/σ²
  c.edm.vlb_weight = 0.0  # of iDDPM's L_vlb, by which a second head learns the reverse variance; .001 in the paper

  c.dual = ConfigDict()  # method "dual_output": heads of noise, image, and which of them to trust
  c.dual.process = "linear"  # linear: DDPM's chain of 1000 steps; cosine: iDDPM's of 4000
  c.dual.heads = "dual"  # dual: ε_θ, x_θ and r_θ; eps: ε_θ alone, the network of DDPM and DDIM
  c.dual.eps_weight = 1.0  # λ^ε, of the noise head's loss
  c.dual.x_weight = 1.0  # λ^x, of the image head's
  c.dual.mean_weight = 1.0  # λ^μ, of the mixed mean's, from which r alone learns
  c.dual.relative = False  # L^μ over that of each head alone, so that r learns at all t alike; the paper's does not
  c.dual.vlb_weight = 0.0  # of iDDPM's L_vlb, by which a fourth head learns the reverse variance; .001 in its paper

  c.dddm = ConfigDict()  # method "dddm": the network sees its own last estimate x̄_0 of the image
  c.dddm.num_steps = 1000  # T of DDPM's chain, β from .1/T to 20/T
  c.dddm.conditioning = "attention"  # how x̄_0 joins: attention, to its pixels as tokens; concat, as channels
  c.dddm.attention_resolutions = (16, 8)  # at which blocks attend to the tokens
  c.dddm.attention_bottleneck = False  # attend to them in the first bottleneck block too
  c.dddm.positions = True  # tokens, and what attends to them, know where they are
  c.dddm.metric = "pseudo_huber"  # d: l1, l2, pseudo_huber, lpips, pseudo_lpips, features, pseudo_features
  c.dddm.metric_c = 0.0  # c of the pseudo metrics; 0: the paper's, .00054·√D for pseudo_huber, 6.9e-5 for the others
  c.dddm.estimates = "buffer"  # x̄_0 in training: buffer, of the example's last visit; in_step, of this very x_t; noise
  c.dddm.in_step_iterations = 1  # of in_step: the most iterations behind x̄_0, a number of them drawn for each example
  c.dddm.buffer_slices = 8  # disjoint parts of the buffer, a multiple of the number of devices; each lies on one
  c.dddm.buffer_dtype = "float32"  # float32, bfloat16, float16
  c.dddm.buffer_memory = "device"  # device, host
  c.dddm.buffer_writes = "estimate"  # estimate; clean: the image itself, as in the published code
  c.dddm.buffer_refresh = 0.0  # probability that a visit sees fresh noise in place of the stored estimate
  c.dddm.consistency_weight = False  # the published code's loss w·d(f, x_0) + (1 − w)·d(f, x̄_0), w = 1/(epoch + 1)
  c.dddm.num_examples = 0  # of the data; 0: as they are found when a run starts
  c.dddm.fingerprint = ""  # of the data; "": as they are found when a run starts

  c.lpips = ConfigDict()  # the perceptual distance of dddm.metric and decoupled.reconstruction_lpips
  c.lpips.weights = ()  # files of PyTorch: VGG16's (vgg16-397923af.pth) and those of LPIPS's linear layers (vgg.pth)

  c.decoupled = ConfigDict()  # method "decoupled": heads of φ, by which the image fades to zero, and of noise
  c.decoupled.attenuation = "constant"  # h_t: constant, linear, quadratic, exponential, sine
  c.decoupled.t_min = 1e-4  # t ~ U[t_min, 1); near 1 x_t says nothing of the image: a task's becomes a regression
  c.decoupled.clamp = False  # the free parameters of φ to [−1, 1]
  c.decoupled.decoder = "two"  # two: one for each head; branch: one, and two convolutions for the noise; one: shared
  c.decoupled.preconditioned = True  # False: heads are taken as they are
  c.decoupled.weight = "auto"  # of both heads' losses: ones; inverse: 1/t, 1/(1 − t + 1e-4); exponential: e^t, e^(1−t);
  # auto: inverse, but ones where φ has free parameters
  c.decoupled.loss = "l2"  # l2, l1
  c.decoupled.reconstruction_weight = 0.0  # of (1 − t)²·MAE(x̂_0, x_0), x̂_0 = x_t − H_t(φ_θ) − √t·ε_θ; 1 in the code
  c.decoupled.reconstruction_lpips = False  # LPIPS beside MAE in it, as in the code; see lpips.weights

  c.dpdm = ConfigDict()  # method "dpdm": a pupil of init_from; its σ are drawn by the fields of the teacher's method
  c.dpdm.diffusion = "edm"  # the teacher's method: edm, dual_output
  c.dpdm.score_steps = 1  # of the score network, an update; then one of the generator
  c.dpdm.generator_weight = "diffusion"  # diffusion: that of score matching, λσ⁴; unit: the smoothed KL itself
  c.dpdm.score_augment = False  # pass what the score network is trained on through EDM's augmentation (data.augment)

  c.classifier = ConfigDict()  # method "classifier": of noisy images, for sampling.classifier of other runs
  c.classifier.process = "linear"  # linear: DDPM's chain of 1000 steps; cosine: iDDPM's of 4000

  c.optimizer = ConfigDict()  # Adam
  c.optimizer.learning_rate = 1e-3
  c.optimizer.warmup_images = 10_000_000  # the rate rises linearly over this many images
  c.optimizer.decay_power = 0.0  # the rate falls as (1 − seen/decay_images)^decay_power; 0: it does not
  c.optimizer.decay_images = 0  # 0: those of the whole run, train.num_steps·train.batch_size
  c.optimizer.min_learning_rate = 0.0  # that it falls to
  c.optimizer.beta1 = 0.9
  c.optimizer.beta2 = 0.999
  c.optimizer.epsilon = 1e-8
  c.optimizer.clip_norm = 0.0  # 0 does not clip
  c.optimizer.frozen = ()  # parameters whose paths match one of these patterns, such as "net/enc_*", do not train
  c.optimizer.weight_decay = 0.0  # AdamW's, decoupled: parameters shrink by this share times the rate
  c.optimizer.loss_scale = 1.0  # multiplies the loss before the backward pass; float16 needs 100 and more
  c.optimizer.loss_scale_growth = 0  # updates in a row after which it doubles; one not finite halves it. 0: fixed

  c.ema = ConfigDict()
  c.ema.half_life_images = 500_000
  c.ema.ramp_up = 0.05  # the half-life is at most this share of the images seen; 0 for no ramp
  c.ema.ramp_power = 0.0  # the decay is at most 1 − (1 + n)^(−ramp_power) after n updates; 0 for no such ramp

  c.train = ConfigDict()
  c.train.batch_size = 512  # over all devices of all hosts
  c.train.num_steps = 390_625
  c.train.parallel = "pmap"  # pmap; jit: one program over all devices; fsdp: that, with the state split over them
  c.train.accumulation = 1  # micro-batches an update
  c.train.updates_per_call = 1  # updates a call of the compiled function
  c.train.log_every = 100
  c.train.checkpoint_every = 5_000
  c.train.keep_checkpoints = 2  # the newest; beside them:
  c.train.keep_every = 0  # those of every so many steps
  c.train.keep_best = 1  # the best by score
  c.train.score_every = 0  # Fréchet distance of the averaged network, a multiple of checkpoint_every; 0: never
  c.train.score_images = 1_000
  c.train.score_inception = ""  # weights-inception-2015-12-05-6726825d.pth, which makes it FID
  c.train.sample_every = 5_000  # PNG grid of fixed seeds
  c.train.max_skipped = 20  # stop after this many non-finite updates in a row

  c.sampling = ConfigDict()
  c.sampling.sampler = "heun"
  c.sampling.num_steps = 18
  c.sampling.grid = "edm"  # of noise levels: edm, vp, ve, iddpm, dpdm; of the method's own times: respaced for
  # dual_output, decoupled for decoupled, dddm for dddm
  c.sampling.process = "own"  # x_t = s(t)·(x_0 + σ(t)·ε): own, the method's; edm, vp, ve
  c.sampling.sigma_min = 0.0  # 0: the grid's own, .002 for edm
  c.sampling.sigma_min_search = False  # by score, not of the published table; of the dpdm grid alone
  c.sampling.sigma_max = 0.0  # 0: the grid's own, 80 for edm
  c.sampling.rho = 7.0  # of the edm grid
  c.sampling.power = 1.0  # of the decoupled grid: t = (1 − i/n)^power
  c.sampling.churn = 0.0  # S_churn, for euler and heun; with S_tmin, S_tmax, S_noise
  c.sampling.s_min = 0.0
  c.sampling.s_max = 1e6
  c.sampling.s_noise = 1.0
  c.sampling.eta = 0.0  # for ddim: 0 deterministic, 1 ancestral
  c.sampling.variance = "posterior"  # for ddpm: posterior, upper, learned
  c.sampling.refit = 0.0  # for decoupled: images become x_t − H_t(φ̂) − √t·ε̂, clipped to [−refit, refit]; 0: not
  c.sampling.order = 0  # for multistep, deis, unipc, sa_solver; 0: the sampler's own, or the highest in so few steps
  c.sampling.variant = "bh2"  # for unipc: bh1, bh2
  c.sampling.tau = 1.0  # for dpmpp_2m_sde and sa_solver: noise of the step, 0 none, 1 that of the reverse SDE;
  c.sampling.tau_min = 0.05  # of sa_solver at noise levels from this
  c.sampling.tau_max = 1.0  # to this
  c.sampling.rtol = 1e-3  # for rk45: relative
  c.sampling.atol = 1e-3  # and absolute tolerance
  c.sampling.snr = 0.16  # for predictor_corrector: signal-to-noise ratio of a corrector step
  c.sampling.guidance = 1.0  # scale of classifier-free guidance, 1 for none
  c.sampling.guidance_sigma_min = 0.0  # noise levels between which it acts; at others the scale is 1, and costs as much
  c.sampling.guidance_sigma_max = 1e6
  c.sampling.guidance_rescale = 0.0  # φ in [0, 1]; 1 gives guided images the contrast of unguided ones, 0 does not
  c.sampling.classifier = ""  # workdir of a run of method classifier, which guides by its gradient
  c.sampling.classifier_scale = 0.0  # scale of its gradient, 0 for none
  c.sampling.clip = 0.0  # clip estimated images to [−clip, clip]; 1 is the range of the data, 0 does not clip
  c.sampling.clip_percentile = 0.0  # share of its pixels, .995, that come to lie in [−clip, clip] undistorted: an image
  # that reaches further is scaled down first; 0 does not
  c.sampling.ratio = "learned"  # r of dual_output: learned; mean, as measured at each t; a number, 0 the noise head
  # alone to 1 the image head alone; or several with commas, for t = T/n, 2T/n, …, T, linear in between
  c.sampling.switch = 0  # of dual_output: this many steps by the image head alone, the others by the noise head alone
  c.lock()
  return c


def remembers(config: ConfigDict) -> bool:
  """Whether a run remembers its examples, see training/memory.py."""
  return config.method == "dddm" and config.dddm.estimates == "buffer"


def slices(config: ConfigDict) -> int:
  """The number of parts in which a run remembers its examples; 1 of one that does not."""
  return config.dddm.buffer_slices if remembers(config) else 1


def on_host(config: ConfigDict) -> bool:
  """Whether what a run remembers of its examples lies in the memory of the hosts."""
  return remembers(config) and config.dddm.buffer_memory == "host"


def decay_images(config: ConfigDict) -> int:
  """The images over which a run's learning rate falls, where it does."""
  return config.optimizer.decay_images or config.train.num_steps * config.train.batch_size


def ratios(text: str) -> tuple[float, ...] | None:
  """The numbers of a config.sampling.ratio; None for "learned" and "mean".

  Raises:
    ConfigError: it is neither of them nor numbers in [0, 1].
  """
  if text in ("learned", "mean"):
    return None
  try:
    numbers = tuple(float(part) for part in text.split(","))
  except ValueError:
    near = difflib.get_close_matches(text, ("learned", "mean"), 1, 0.0)
    expected = f"expected learned, mean, or numbers in [0, 1] such as 0.5; nearest: {near[0]}"
    raise wrong("sampling.ratio", text, expected) from None
  if not all(0 <= number <= 1 for number in numbers):
    raise wrong("sampling.ratio", text, "r must be in [0, 1]")
  return numbers
