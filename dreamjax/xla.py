"""Settings of XLA that the command line and Python programs share."""

import contextlib
import os
import pathlib

_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type"


def prepare_xla() -> None:
  """Sets the compilation cache and XLA's CPU flags. Call it before JAX computes anything; the command line does.

  Compiled programs are kept between runs in `$XDG_CACHE_HOME/dreamjax/xla`, unless JAX is already configured with a
  cache: small ones too, of which `dreamjax evaluate` has some 160, a quarter of its time.

  On a CPU, jaxlib 0.10 compiles convolutions and matrix products with YNNPACK, with which an update of the toybox's
  cascade takes 1.2 (base) or 1.5 times as long (super-resolution), so that is turned off, unless XLA_FLAGS already
  names the flag. With AVX-512, convolutions and reductions are left to YNNPACK: there are then 1.3 (base) and 1.2 to
  1.4 times (super-resolution) as many updates a second as without YNNPACK.

  jaxlib 0.12 keeps its default. On one core of an EPYC with AVX-512, an update took 2.82 s of CPU time by default, 2.73
  without YNNPACK and 2.79 with convolutions and reductions (base), and 1.72, 1.75 and 1.73 (super-resolution): medians
  of 9 interleaved turns, closer together than the turns of one setting. Nor is a flag set for versions that were not
  measured, for XLA stops at a flag that it does not know.
  """
  import jax
  import jaxlib.version

  if jax.config.jax_compilation_cache_dir is None:
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "dreamjax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  flags = os.environ.get("XLA_FLAGS", "")
  if jaxlib.version.__version_info__[:2] == (0, 10) and _YNNPACK not in flags:
    fused = "individual_convolution,reduce" if _has_avx512() else ""
    os.environ["XLA_FLAGS"] = f"{flags} {_YNNPACK}={fused}".strip()


def _has_avx512() -> bool:
  with contextlib.suppress(OSError):  # systems other than Linux have no such file
    return "avx512f" in pathlib.Path("/proc/cpuinfo").read_text()
  return False
