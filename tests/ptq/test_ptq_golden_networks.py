"""Whole networks by the authors' code, one by 2DQuant and one by SPR2Q: every bound, output, loss and gradient.

Queries, keys and values have one layer here and three there. Weights have bounds for each; their common input has one pair
here, whose gradient is the sum of three. What scan and x_proj read is one site there and two here, the other way round.
"""

from __future__ import annotations

import pytest
import torch
from basicsr.archs import build_network
from golden_cases import far

from qmambair_basicsr import checkpoints
from qmambair_basicsr.layers.sites import network_sites
from qmambair_basicsr.layers.transforms import transforms_of
from qmambair_basicsr.ptq import build_method

NEAR = 1e-5
PLAIN, OFF = {"type": "MinMax", "bits": 4}, {"type": "Identity"}
PARTS = {"weight": {**PLAIN, "granularity": "channel"}}
SITES = {
    "mymodule_q": "qk_matmul.q", "mymodule_k": "qk_matmul.k", "mymodule_v": "av_matmul.v", "mymodule_a": "av_matmul.map",
    "mymodule_xs": "u", "mymodule_dts": "dt_projs.act", "mymodule_delta": "delta", "mymodule_As": "A",
    "mymodule_Bs": "B", "mymodule_Cs": "C", "mymodule_hs": "h", "mymodule_dt_projs_bias": "dt_bias",
    "dt_weight": "dt_projs.weight", "x_weight": "x_proj.weight", "fq_embeddingB_w": "embeddingB.weight",
    "fq_cls_policy_a": "prompt_matmul.policy", "fq_full_embedding_a": "prompt_matmul.dictionary",
}  # fmt: skip
"""Last part of a quantizer's name there -> site here, below the same module."""


def part_of(name):
    """Layer here, and which third of it, of a layer there."""
    place, _, part = name.rpartition(".")
    return (place, "qkv".index(part)) if part in ("q", "k", "v") and place.endswith("qkv") else (name, 0)


def site_of(theirs):
    """Label of the site, and which of its pairs of bounds, of a quantizer there."""
    place, _, name = theirs.rpartition(".")
    if name == "fq_token_w":
        return f"{place.removesuffix('.assm')}.embeddingA.weight", 0
    if name in SITES:
        return f"{place}.{SITES[name]}", 0
    operand = name.removesuffix("_quantizer")
    layer, index = part_of(place)
    return f"{layer}.{operand}", index if operand == "weight" else 0


class Compared:
    """A network in calibration with the authors' values beside it.

    Args:
        case: theirs.
        method: ``ptq: method``.
        quant: the ``quant:`` block.
        dtype: of everything.
    """

    def __init__(self, case, method, arch, quant, dtype=torch.float32):
        self.case, self.dtype = case, dtype
        self.net = build_network({"type": arch, **case["config"], "quant": quant})
        checkpoints.load_fp_state(self.net, case["params"])
        self.net.to(dtype)
        self.method = build_method({"type": method, "samples": 0})
        self.method.open(self.net)
        self.method.calibrate([self.given("calib")])
        self.sites = {p.site.label: p.quantizer for p in network_sites(self.net) if p.quantizer.bits != 32}

    def given(self, name):
        return self.case[name].to(self.dtype)

    def pair(self, theirs, value=lambda bound: bound):
        """What a function makes of the two bounds of a quantizer there, (2,)."""
        label, index = site_of(theirs)
        quantizer = self.sites[label]
        return torch.stack([value(bound).reshape(-1)[index] for bound in (quantizer.lower, quantizer.upper)]).detach()

    def gradients(self):
        """(site, part) -> gradients of its two bounds here and there, (2,) each; sums where one side has several."""
        found = {}
        for theirs, wanted in self.case["bound_grads"].items():
            label, index = site_of(theirs)
            if (label, index) not in found:
                own = self.pair(theirs, lambda bound: bound.grad)
                if label.endswith(".u"):
                    twin = self.sites[f"{label[:-1]}x_proj.act"]
                    own = own + torch.stack((twin.lower.grad[0], twin.upper.grad[0]))
                found[label, index] = own, torch.zeros(2, dtype=torch.float64)
            found[label, index][1].add_(torch.tensor(wanted, dtype=torch.float64))
        return found


@pytest.fixture
def swinir(shared_dir):
    case = torch.load(shared_dir / "golden/ptq/ptq_2dquant_swinir_4b.pt", weights_only=True)
    quant = {"weight": PLAIN, "act": PLAIN, "attention": PLAIN, "conv": "fp", "overrides": {"*.qkv": PARTS}}
    return Compared(case, "TwoDQuant", "QSwinIR", quant)


def test_2dquant_end_to_end(swinir):
    """Up to the bounds after a step of Adam, of the release's default options."""
    case, method = swinir.case, swinir.method
    assert far(method.full(case["input"]), case["output_fp"]) < NEAR
    assert {site_of(theirs)[0] for theirs in case["bounds"]} == set(swinir.sites)
    for theirs, wanted in case["bounds"].items():
        assert far(swinir.pair(theirs), wanted) < NEAR, theirs
    assert far(swinir.net(case["input"]).detach(), case["output_q"]) < NEAR
    method.plan(4000)
    losses = method.step(0, case["input"])
    for name in ("l_pix", "l_feature"):
        assert abs(losses[name] / case["loss_log"][name] - 1) < NEAR, name
    largest = max(abs(g) for pair in case["bound_grads"].values() for g in pair)
    for site, (own, wanted) in swinir.gradients().items():
        assert far(own, wanted) < NEAR * largest, site
    for theirs, wanted in case["bounds_after_one_adam_step"].items():
        if not theirs.endswith(("q.act_quantizer", "k.act_quantizer", "v.act_quantizer")):
            assert far(swinir.pair(theirs), wanted) < NEAR, theirs


def mambairv2(shared_dir, dtype):
    case = torch.load(shared_dir / "golden/ptq/ptq_spr2q_mambairv2_4b.pt", weights_only=True)
    case["config"]["eval_routing"] = "argmax"
    quant = dict.fromkeys(("weight", "act", "scan", "attention", "routing", "state"), PLAIN) | {
        "overrides": {"*.D": {"scan": OFF}, "layers.?.conv": {"weight": OFF, "act": OFF}, "*.wqkv": PARTS}
    }
    made = Compared(case, "SPR2Q", "QMambaIRv2Light", quant, dtype)
    for name, kept in case["rectifiers"].items():
        place, part = part_of(name)
        with torch.no_grad():
            for key in ("A", "B", "logits"):
                getattr(transforms_of(made.net)[place], key)[part].copy_(kept[key])
    return made


def test_spr2q_end_to_end(shared_dir):
    """Gradients that the vectors' own rounding moves by more than 1e-5 (ours in float64 say so) are compared in float64.

    Of an attention map with masked pairs float32 leaves zeros, which then lie on its lower bound; Paddle's softmax ends at
    exp(-64), so theirs lie above it, as they do in float64.
    """
    exact, ours = (mambairv2(shared_dir, dtype) for dtype in (torch.float64, torch.float32))
    for made in (exact, ours):
        case = made.case
        assert far(made.method.full(made.given("input")), case["output_fp"]) < NEAR
        covered = {site_of(theirs)[0] for theirs in case["bounds"]}
        assert {label for label in made.sites if not label.endswith("x_proj.act")} == covered
        for theirs, wanted in case["bounds"].items():
            assert far(made.pair(theirs), wanted) < NEAR, theirs
        y = made.net(made.given("input"))
        assert far(y.detach(), case["output_q"]) < NEAR
        y.backward(made.given("grad_weight"))
        for name, wanted in case["logit_grads"].items():
            place, part = part_of(name)
            assert far(transforms_of(made.net)[place].logits.grad[part], wanted) < NEAR, name
    noisy = 0
    single = ours.gradients()
    for site, (precise, wanted) in exact.gradients().items():
        size = max(1, wanted.abs().max().item())
        distance = far(precise, wanted) / size
        noisy += distance > NEAR
        assert distance < 2 * NEAR, site
        own = single[site][0]
        if site[0].endswith("layers.1.win_mhsa.av_matmul.map"):
            own, precise = own[1], precise[1]
        assert far(own, precise) < NEAR * size, site
    assert noisy <= 4
