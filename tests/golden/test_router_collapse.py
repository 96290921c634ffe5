"""From a collapsed router, the balancing rules bring the load back; the curve is kept in router_collapse.json.

The program is the oracle of its own past here: the golden curve was looked at, and is the picture in docs/balancing.md. `./dev bench router_collapse --write-golden`
makes both anew.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
import router_collapse  # noqa: E402

GOLDEN = json.loads((ROOT / "tests/golden/router_collapse.json").read_text())
# Of a window's mean. Training is chaotic: another processor's order of sums, or another layout, gives other choices after some tens of steps, and
# curves apart by a few percent, their even ends too; a rule that stops working is apart by a factor.
TOLERANCE = 0.15


def test_the_golden_curves_show_what_they_are_kept_for():
    curves = {rule: router_collapse.windows(curve["imbalance"]) for rule, curve in GOLDEN["rules"].items()}
    assert list(curves) == list(router_collapse.RULES)
    for rule, means in curves.items():
        assert len(means) == router_collapse.STEPS // router_collapse.WINDOW
        assert GOLDEN["rules"][rule]["keys"] == router_collapse.RULES[rule]
        assert means[-1] < router_collapse.EVEN, rule


@pytest.mark.slow
@pytest.mark.parametrize("rule", router_collapse.RULES)
def test_a_run_follows_its_golden_curve(rule):
    means = router_collapse.windows([record["expert_imbalance"] for record in router_collapse.run_rule(rule)])
    assert means[-1] < (1 + TOLERANCE) * router_collapse.EVEN, means
    if router_collapse.data_fingerprint() == GOLDEN["data_sha256"]:  # the text is that of the Python that is there
        assert means == pytest.approx(router_collapse.windows(GOLDEN["rules"][rule]["imbalance"]), rel=TOLERANCE)
    else:
        print("another Python's sources: only the end of the curve was compared", np.round(means, 2))
