"""Descriptions of generators of the published sizes, without weights, from which runs are planned.

They are DeepFloyd's IF-I-XL and IF-II-L, Runway's Stable Diffusion 1.5, Stability AI's SDXL, Hugging Face's aMUSEd-512,
and Muse-3B of Muse (Chang et al., 2301.00704) with its super-resolution stage. The paper does not state Muse's numbers
of heads and blocks, nor the widths of its VQGANs.
"""

from collections.abc import Callable
from typing import Any

from dreamjax.convert.pretrained import shapes
from dreamjax.data.tokenizer import Tokenizer
from dreamjax.diffusion.schedules import BetaTable
from dreamjax.errors import UserError
from dreamjax.generators.cascade import AUTOENCODER, Cascade, Sampling, Spacing, Stage
from dreamjax.generators.generator import TEXT
from dreamjax.generators.masked import Decoding, Masked, TokenStage
from dreamjax.models import autoencoder, clip, latent_unet, muse, t5, unet, uvit
from dreamjax.models.clip import PromptEncoder
from dreamjax.models.vqgan import VQGAN

_COSINE, _SCALED = BetaTable("squaredcos_cap_v2"), BetaTable("scaled_linear", start=0.00085, end=0.012)
_SPACING = Spacing("leading", 1, clean=False)
_AMUSED_VQGAN = VQGAN(widths=(128, 256, 256, 512, 768), blocks=2, latent=64, embedding=64, codebook=8192)
_MUSE_WIDTHS = (128, 128, 256, 256, 512), (128, 256, 256, 512)  # one token for 16x16 pixels, one for 8x8


def _if_xl() -> Cascade:
  ancestral = {"sampler": "ancestral", "threshold_percentile": 0.95, "threshold_max": 1.5, "variance": "learned"}
  base = Stage(
    "base", unet.IF_I_XL, _COSINE, "eps", sampling=Sampling(steps=100, guidance=7.0, **ancestral), masks_text=False
  )
  super_resolution = Stage(
    "sr", unet.IF_II_L, _COSINE, "eps", _COSINE, Sampling(steps=50, guidance=4.0, augmentation_level=0.25, **ancestral),
    masks_text=False,
  )  # fmt: skip
  return Cascade("if-xl", t5.V1_1_XXL, _tokenizer(), (base, super_resolution))


def _sd15() -> Cascade:
  stage = Stage(
    "base", latent_unet.SD_15, _SCALED, "eps", sampling=Sampling(steps=50, guidance=7.5), masks_text=False,
    spacing=_SPACING,
  )  # fmt: skip
  encoder = PromptEncoder((clip.L_14.text.clone(projection=None),))
  return Cascade("sd15", encoder, _tokenizer(), (stage,), autoencoder.SD)


def _sdxl() -> Cascade:
  stage = Stage(
    "base", latent_unet.SDXL, _SCALED, "eps", sampling=Sampling(steps=50, guidance=5.0), masks_text=False,
    spacing=_SPACING, sizes=(1024, 1024, 0, 0, 1024, 1024),
  )  # fmt: skip
  towers = clip.L_14.text.clone(projection=None), clip.BIG_G_TEXT
  return Cascade("sdxl", PromptEncoder(towers, True, True), _tokenizer(), (stage,), autoencoder.SD.clone(scale=0.13025))


def _muse_3b() -> Masked:
  vqgans = [VQGAN(widths, blocks=2, latent=256, embedding=256, codebook=8192) for widths in _MUSE_WIDTHS]
  stages = (
    TokenStage("base", muse.MUSE_3B, vqgans[0], Decoding(24, 4.5, 1.0, 9.0)),
    TokenStage("sr", muse.MUSE_SR, vqgans[1], Decoding(8, 4.5, 1.0, 9.0)),
  )
  return Masked("muse-3b", t5.V1_1_XXL, _tokenizer(), stages)


def _amused() -> Masked:
  encoder = PromptEncoder((clip.L_14.text,), penultimate=True)
  stage = TokenStage(
    "base",
    uvit.AMUSED_512,
    _AMUSED_VQGAN,
    Decoding(12, 2.0, lambda_b=9.0, starts_at_temperature=True),
    (512, 512, 0, 0, 6.0),
    positive=True,
  )
  return Masked("amused512", encoder, _tokenizer(), (stage,))


def _tokenizer() -> Tokenizer:
  """A stand-in for a tokenizer that has only the length of a prompt in tokens."""
  return Tokenizer(None, 77)  # type: ignore[arg-type]


#: The functions that describe them, by the names of their recipes in `configs`.
PUBLISHED: dict[str, Callable[[], Cascade | Masked]] = {
  "if-xl": _if_xl, "sd15": _sd15, "sdxl": _sdxl, "muse-3b": _muse_3b, "amused512": _amused,
}  # fmt: skip


def describe(name: str) -> tuple[Cascade | Masked, dict[str, Any]]:
  """Describes one of `PUBLISHED`: what `generators.load` returns, but with the shapes of parameters for parameters.

  Raises:
    UserError: if there is none of this name.
  """
  if name not in PUBLISHED:
    raise UserError(f"nothing is known of the sizes of {name!r}; there are: {', '.join(PUBLISHED)}")
  generator = PUBLISHED[name]()
  encoder = generator.text_encoder
  if isinstance(encoder, PromptEncoder):
    params: dict[str, Any] = {TEXT: {f"towers_{i}": shapes(tower) for i, tower in enumerate(encoder.towers)}}
  else:
    params = {TEXT: shapes(encoder)}
  for stage in generator.stages:
    if isinstance(stage, TokenStage):
      params[stage.name] = {"transformer": shapes(stage.transformer), "vqgan": shapes(stage.vqgan)}
    else:
      params[stage.name] = shapes(stage.unet)
  if isinstance(generator, Cascade) and generator.autoencoder is not None:
    params[AUTOENCODER] = shapes(generator.autoencoder)
  return generator, params
