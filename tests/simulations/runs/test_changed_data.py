"""A run whose data have changed since is neither measured nor audited nor resumed as if they had not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedmutual.data import check
from fedmutual.data.fingerprint import FILE, refuse_changed, write_fingerprints
from fedmutual.errors import UserError
from simulations.engine.simulation import Simulation
from simulations.runs.few_steps import FewSteps
from simulations.runs.measuring import evaluate
from simulations.runs.membership import audit_run
from simulations.runs.peer_gain import weigh_peers
from tests.support.federation import LocalGrid, federate


@pytest.fixture
def images(tmp_path):
    """Two classes of 40 images, and settings of a run on them."""
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / "data" / name).mkdir(parents=True)
        for row in range(40):
            pixels = rng.integers(0, 256, (6, 6)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "data" / name / f"{row:02}.png")
    return tmp_path / "data", {
        "data": "folder",
        "data_path": str(tmp_path / "data"),
        "imbalance": "none",
        "head_count": 0,
        "held_out": 4,
        "test": 12,
        "samples": 6,
    }


def test_what_uses_the_data_again_refuses_others(small, images):
    place, settings = images
    config = small(**settings)
    federate(config, LocalGrid(range(2)))
    run = Path(config.federation.out)
    write_fingerprints(run, check(config.data, config.seed).fingerprints)
    evaluate(run)
    (place / "b" / "20.png").unlink()
    uses = (
        lambda: evaluate(run),
        lambda: audit_run(run),
        lambda: weigh_peers(run),
        lambda: FewSteps(run, [5], 2),
        lambda: Simulation(config.but(resume=True)),
    )
    for use in uses:
        with pytest.raises(UserError, match="class b has 23 training samples and had 24"):
            use()


def test_a_simulation_keeps_fingerprints_and_reads_every_class_first(small, images):
    place, settings = images
    config = small(**settings)
    Simulation(config)
    run = Path(config.federation.out)
    assert (run / FILE).exists()
    refuse_changed(run, check(config.data, config.seed).fingerprints, ["a", "b"])
    other = config.but(out=str(run.with_name("other")))
    (place / "b" / "07.png").write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"class b: .*07\.png is not a whole image"):
        Simulation(other)
    assert not Path(other.federation.out).exists()
