"""The frame of the command-line programs: flags, config overrides, one line and exit code 2 for a user's mistake."""

from diffusion_jax.cli.autoencoders import AutoencoderFlags as AutoencoderFlags
from diffusion_jax.cli.models import Model as Model
from diffusion_jax.cli.models import ModelFlags as ModelFlags
from diffusion_jax.cli.models import define_sampler as define_sampler
from diffusion_jax.cli.models import nfe_steps as nfe_steps
from diffusion_jax.cli.models import open_model as open_model
from diffusion_jax.cli.models import open_published as open_published
from diffusion_jax.cli.models import open_run as open_run
from diffusion_jax.cli.models import provenance as provenance
from diffusion_jax.cli.program import UsageError as UsageError
from diffusion_jax.cli.program import arguments as arguments
from diffusion_jax.cli.program import checked as checked
from diffusion_jax.cli.program import define_config as define_config
from diffusion_jax.cli.program import define_hosts as define_hosts
from diffusion_jax.cli.program import run as run
from diffusion_jax.cli.program import seeds as seeds
from diffusion_jax.cli.scores import ScoreFlags as ScoreFlags
