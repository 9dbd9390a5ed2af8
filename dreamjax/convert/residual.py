"""Encoders and decoders in the layout that diffusers' `VQModel` and `AutoencoderKL` share."""

from typing import Any

from dreamjax.convert.table import Row, Setting, conv, dense, norm
from dreamjax.errors import UserError


def block(key: str, path: str) -> tuple[Row, ...]:
  """Returns the rows of a residual block."""
  return (
    *norm(f"{key}.norm1", f"{path}/norm_1"),
    *conv(f"{key}.conv1", f"{path}/conv_1"),
    *dense(f"{key}.time_emb_proj", f"{path}/embedding"),
    *norm(f"{key}.norm2", f"{path}/norm_2"),
    *conv(f"{key}.conv2", f"{path}/conv_2"),
    *conv(f"{key}.conv_shortcut", f"{path}/around"),
  )


def _half(name: str, level: str, step: str) -> tuple[Row, ...]:
  """Returns the rows of the encoder or of the decoder."""
  attention, path = f"{name}.mid_block.attentions.0", f"{name}/middle_attention"
  return (
    *conv(f"{name}.conv_in", f"{name}/conv_in"),
    *block(f"{name}.{level}_blocks.{{}}.resnets.{{}}", f"{name}/{level}_{{}}/block_{{}}"),
    *conv(f"{name}.{level}_blocks.{{}}.{step}rs.0.conv", f"{name}/{level}_{{}}/{step}/conv"),
    *block(f"{name}.mid_block.resnets.{{}}", f"{name}/middle_{{}}"),
    *norm(f"{attention}.group_norm", f"{path}/norm"),
    *dense(f"{attention}.to_q", f"{path}/query"),
    *dense(f"{attention}.to_k", f"{path}/key"),
    *dense(f"{attention}.to_v", f"{path}/value"),
    *dense(f"{attention}.to_out.0", f"{path}/out"),
    *norm(f"{name}.conv_norm_out", f"{name}/norm"),
    *conv(f"{name}.conv_out", f"{name}/conv_out"),
  )


ROWS = (
  *_half("encoder", "down", "downsample"),
  *conv("quant_conv", "before"),
  *conv("post_quant_conv", "after"),
  *_half("decoder", "up", "upsample"),
)

SETTINGS = (
  Setting("block_out_channels", (64,), "widths"),
  Setting("layers_per_block", 1, "blocks"),
  Setting("norm_num_groups", 32, "groups"),
  Setting("act_fn", "silu", known=("silu",)),
  Setting("in_channels", 3, known=(3,)),
  Setting("out_channels", 3, known=(3,)),
)
LEVELS = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}


def check_levels(config: dict[str, Any], count: int) -> None:
  """Raises ValueError unless a `config.json` has `count` levels of the supported kind."""
  for name, level in LEVELS.items():
    if list(config.get(name, (level,))) != [level] * count:
      raise UserError(f"{name} is {config.get(name)} in config.json, but this model needs {count} {level}")


def write_levels(count: int) -> dict[str, list[str]]:
  """Returns the settings of a `config.json` for `count` levels."""
  return {name: [level] * count for name, level in LEVELS.items()}
