"""`dreamjax plan`, as a user would call it; what the compiler would say is made up here."""

import json

import jax
import pytest

from dreamjax.train import topologies

UPDATE = "round 1, base: update"


@pytest.fixture
def planned(run, monkeypatch, tmp_path):
  """planned(*arguments, needed=()) -> (status, what was said, the JSON); needed: bytes for which there is no room."""
  monkeypatch.setattr(topologies, "devices", lambda _: jax.devices()[:4])

  def planned(*arguments, needed=()):
    needed = list(needed)

    def load(lowered):
      assert isinstance(lowered, jax.stages.Lowered)
      if needed:
        problem = f"HLO temporaries ({needed.pop(0) / topologies.GIB:.2f}G) exceeds available HBM (15.75G)"
        raise jax.errors.JaxRuntimeError(f"RESOURCE_EXHAUSTED: the total memory required for {problem}.")
      sent = {"all-gather": 3e6, "all-reduce": 2e6}
      return topologies.Load(0, 2 * topologies.GIB, topologies.GIB, 0, 4e12, 1e9, sent)

    monkeypatch.setattr(topologies, "load", load)
    file = tmp_path / "plan.json"
    status, said = run(
      "plan", "--config", "configs/styledrop.py:toybox", "--model", "toybox-muse", "--topology", "v5e:2x2",
      "--out", file, *arguments,
    )  # fmt: skip
    return status, said, json.loads(file.read_text()) if file.exists() else None

  return planned


def test_what_fits_is_said_with_all_that_it_needs(planned):
  status, said, told = planned("--only", UPDATE)
  assert status == 0
  (one,) = told["programs"]
  assert one["fits"] and one["peak"] == sum(one["held"].values()) + 3 * topologies.GIB
  lines = said.out.splitlines()
  assert max(map(len, lines)) <= 120
  assert "on 4 devices by --mesh fsdp=4, which the run must be passed as well" in said.out
  assert f"{UPDATE} fits: 3.0" in said.out and "of 15.75 GiB" in said.out and "would" not in said.out
  for word in ("parameters", "optimizer", "activations", "peak", "model's", "all-gather", "all-reduce", "step"):
    assert word in said.out
  (row,) = [line.split() for line in lines if line.startswith(f" {UPDATE}") and "5.0" in line and "3.0" in line]
  assert row[-3:] == ["3.0", "2.0", "5.0"]  # MB of each kind, and of all
  assert told["chip"]["source"] == "docs.cloud.google.com/tpu/docs/v5e" and told["chip"]["source"] in said.out
  assert one["seconds"] == 4e12 / 197e12 and told["minutes"] == pytest.approx(150 * one["seconds"] / 60)
  assert f"at least {told['minutes']:.1f} minutes, compilation not counted" in said.out


def test_what_does_not_fit_is_said_plainly_with_what_would(planned):
  status, said, told = planned("--only", UPDATE, "--mesh", "fsdp=2", needed=[48 * topologies.GIB])
  assert status == 0
  (one,) = told["programs"]
  assert not one["fits"] and 48 <= one["peak"] / topologies.GIB < 48.1 and "does not fit: it needs 48.0" in said.out
  # Four rows on a device need 48 GiB: on all four devices two need 24, and one 12.
  assert one["instead"]["fits"] and one["instead"]["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
  assert (
    one["instead"]["fields"] == {"first.base.batch_size": 4} == {"first.base.batch_size": one["instead"]["batch_size"]}
  )
  words = "it would fit, for that was compiled, by --mesh fsdp=4 --config.first.base.batch_size=4: 3.0"
  assert words in said.out and "pieces" not in said.out
  assert told["minutes"] == 0 and "nor programs that do not fit" in said.out


def test_what_was_compiled_and_does_not_fit_is_not_said_to(planned):
  _, said, told = planned("--only", UPDATE, needed=[24 * topologies.GIB, 20 * topologies.GIB])
  assert not told["programs"][0]["instead"]["fits"]
  assert "nor does it fit by --mesh fsdp=4 --config.first.base.batch_size=4, which was compiled: 20.0" in said.out
  assert "no mesh of these chips and no smaller batch was found by which it would" in said.out
  assert "not tried: --config.dtype=bfloat16, --config.remat=all, more chips" in said.out


def test_where_nothing_is_found_it_is_said(planned):
  _, said, told = planned("--only", UPDATE, "--mesh", "data=1", needed=[2**14 * topologies.GIB])
  assert "on one device, the default of a run" in said.out
  assert told["programs"][0]["instead"] is None and "was compiled" not in said.out
  assert "no mesh of these chips and no smaller batch was found by which it would" in said.out


def test_what_cannot_be_planned_is_one_line(planned):
  status, said, _ = planned("--config.first.base.batch_size=6")
  assert status == 2 and f"{UPDATE}: batches of 6 rows (--config.first.base.batch_size=6)" in said.err
  assert "of 4 or 8 they can" in said.err
  status, said, _ = planned("--only", "round 3")
  assert status == 2 and "no program of this run has 'round 3' in its name" in said.err
