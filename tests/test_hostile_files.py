"""Files whose numbers would steer memory: constants are compared, codes and their metadata are looked at.

``QMAMBAIR_MUTATIONS`` sets how many mutated tensors each loader is given, in place of a number that takes seconds.
"""

from __future__ import annotations

import copy
import json
import os
from types import SimpleNamespace

import pytest
import torch
import yaml
from basicsr.archs import build_network
from basicsr.models.base_model import BaseModel
from tiny_networks import OURS, tiny_network

from qmambair_basicsr import checkpoints
from qmambair_basicsr.calibration import calibrate
from qmambair_basicsr.constants import ConstantBuffers, constants_of
from qmambair_basicsr.inference.networks import network_of
from qmambair_basicsr.layers.convert import FixedGrid, constant_grids, freeze_dls, set_constant_grids
from qmambair_basicsr.layers.sites import quantizer_keys

KEY = "relative_position_index_SA"
WILD = [-1, -3, 961, 5000, 10**12, -(2**63), 2**63 - 1]
NETWORK = {"type": "QMambaIRv2Light", "depths": [1], "num_heads": [2], "embed_dim": 24, "window_size": 4}
NETWORK |= {"d_state": 2, "mlp_ratio": 1.0, "inner_rank": 3, "num_tokens": 5, "eval_routing": "argmax"}


def mutations(default: int) -> range:
    return range(int(os.environ.get("QMAMBAIR_MUTATIONS", default)))


def described(weight="LSQ", scan="DLS", bits=3, **options):
    quant = {"weight": {"type": weight, "bits": bits}, "act": {"type": "LSQOffset", "bits": 4}}
    return NETWORK | {"quant": quant | {"scan": {"type": scan, "bits": 4, **options}}}


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    net = build_network(copy.deepcopy(described()))
    calibrate(net, [torch.rand(1, 3, 8, 8)])
    return net.eval()


def mutated(good: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A copy with one to three other values, most of them outside the table."""
    index, flat = good.clone(), good.view(-1)
    for _ in range(int(torch.randint(1, 4, (), generator=generator))):
        place = int(torch.randint(index.numel(), (), generator=generator))
        kind = int(torch.randint(len(WILD) + 1, (), generator=generator))
        index.view(-1)[place] = [*WILD, int(flat[place]) + 1][kind]
    return index


@pytest.mark.parametrize("name", OURS)
def test_every_buffer_that_is_saved_is_a_constant_or_a_quantizers(name):
    """A new one must be declared, so that files cannot set it."""
    net = build_network(tiny_network(name, described()["quant"]))
    buffers = net.state_dict().keys() - dict(net.named_parameters()).keys() - quantizer_keys(net)
    constants = constants_of(net)
    assert buffers == constants.keys()
    assert all(torch.equal(net.state_dict()[key], value) for key, value in constants.items())


def refused(error, load):
    """The message of a refusal, which names key, position and both values."""
    with pytest.raises(error, match=rf"{KEY}\[\d+, \d+\] is the constant \d+, the file holds -?\d+") as caught:
        load()
    return str(caught.value)


def loaders(net, state, folder):
    """Every way a .pth takes into a network, as functions of one argument: the mutated state."""

    def basicsr(state):
        torch.save({"params": state}, folder / "net.pth")
        model = SimpleNamespace(get_bare_model=lambda net: net, _print_different_keys_loading=lambda *_: None)
        BaseModel.load_network(model, net, str(folder / "net.pth"))

    def tools(state):
        torch.save({"params": state}, folder / "net.pth")
        network_of(str(folder / "net.yml"), str(folder / "net.pth"))

    (folder / "net.yml").write_text(yaml.safe_dump({"name": "net", "network_g": described()}))
    plain = {k for k in state if k not in quantizer_keys(net)}
    mismatch = checkpoints.CheckpointMismatchError
    return {
        "load_state_dict": (RuntimeError, 100, net.load_state_dict),
        "not strict": (RuntimeError, 200, lambda s: net.load_state_dict({KEY: s[KEY]}, strict=False)),
        "assigned": (RuntimeError, 50, lambda s: net.load_state_dict(s, assign=True)),
        "load_state": (mismatch, 100, lambda s: checkpoints.load_state(net, s, "net.pth")),
        "load_state, not strict": (mismatch, 50, lambda s: checkpoints.load_state(net, s, "net.pth", strict=False)),
        "load_fp_state": (mismatch, 50, lambda s: checkpoints.load_fp_state(net, {k: s[k] for k in plain})),
        "load_network of BasicSR": (RuntimeError, 20, basicsr),
        "tools": (mismatch, 5, tools),
    }


def test_mutated_constants_are_refused_by_every_loader(net, tmp_path):
    net = copy.deepcopy(net)
    good, generator = {k: v.clone() for k, v in net.state_dict().items()}, torch.Generator().manual_seed(0)
    for error, count, load in loaders(net, good, tmp_path).values():
        load(good)
        for _ in mutations(count):
            message = refused(error, lambda: load({**good, KEY: mutated(good[KEY], generator)}))  # noqa: B023
            assert message.count("the file holds") == 1
            assert torch.equal(net.state_dict()[KEY], good[KEY])


@pytest.mark.parametrize("kind", [torch.int32, torch.float32, torch.float64])
def test_constants_of_another_type_are_compared_by_value(net, kind):
    net = copy.deepcopy(net)
    net.load_state_dict({KEY: net.state_dict()[KEY].to(kind)}, strict=False)
    assert net.state_dict()[KEY].dtype == torch.int64
    if kind.is_floating_point:
        for value in (float("nan"), float("inf"), 0.5):
            wrong = net.state_dict()[KEY].to(kind)
            wrong[1, 2] = value
            with pytest.raises(RuntimeError, match=rf"{KEY}\[1, 2\] is the constant \d+, the file holds"):
                net.load_state_dict({KEY: wrong}, strict=False)


def test_constants_of_another_shape_are_named(net):
    with pytest.raises(RuntimeError, match=rf"{KEY} is a constant of shape \(16, 16\), the file holds \(4, 4\)"):
        copy.deepcopy(net).load_state_dict({KEY: torch.zeros(4, 4).long()}, strict=False)


def test_a_module_without_declared_constants_says_so():
    with pytest.raises(NotImplementedError):
        ConstantBuffers().constant_buffers()


# ---- packed files ----------------------------------------------------------------------------------------------------


class Packed:
    """A packed file, taken apart; ``write`` puts it together with a checksum that fits."""

    def __init__(self, folder, network):
        safetensors = pytest.importorskip("safetensors")
        from qmambair_basicsr.artifacts import packed

        torch.manual_seed(0)
        self.packed, self.folder = packed, folder
        net = build_network(copy.deepcopy(network))
        calibrate(net, [torch.rand(1, 3, 8, 8)])
        packed.save_packed(net.eval(), network, folder / "good.safetensors")
        with safetensors.safe_open(str(folder / "good.safetensors"), "pt") as file:
            self.meta = dict(file.metadata())
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        self.codes = sorted(k for k, t in self.tensors.items() if t.dtype == torch.uint8)

    def load(self, tensors=None, meta=None):
        from safetensors.torch import save_file

        tensors, meta = self.tensors | (tensors or {}), self.meta | (meta or {})
        tensors = {k: t for k, t in tensors.items() if t is not None}
        path = self.folder / "mutated.safetensors"
        save_file(tensors, str(path), meta | {"sha256": self.packed._digest(tensors)})
        return self.packed.load_packed(path)

    def refused(self, words, **changes):
        errors = self.packed.PackedCheckpointError, checkpoints.NonFiniteWeightsError
        with pytest.raises(errors, match=words) as caught:
            self.load(**changes)
        assert "mutated.safetensors" in str(caught.value) and len(str(caught.value)) < 600


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return Packed(tmp_path_factory.mktemp("packed"), described())


def test_a_constant_in_a_packed_file_is_compared(file, net):
    index = net.state_dict()[KEY]
    file.load({KEY: index})
    generator = torch.Generator().manual_seed(0)
    for _ in mutations(15):
        file.refused(rf"{KEY}\[\d+, \d+\] is the constant", tensors={KEY: mutated(index, generator)})


def test_a_changed_constant_is_not_saved(file, net, tmp_path):
    net = copy.deepcopy(net)
    net.relative_position_index_SA[0, 0] = 5000
    with pytest.raises(ValueError, match="QMambaIRv2Light was changed after it was built: relative_position"):
        file.packed.save_packed(net, described(), tmp_path / "net.safetensors")
    assert KEY not in file.tensors


def test_mutated_codes_stay_in_range_or_are_refused(file):
    """Any bytes of 3 bits a code are codes of a grid with 8 levels; other sizes and types are not."""
    generator, image = torch.Generator().manual_seed(1), torch.rand(1, 3, 8, 8)
    for i in mutations(24):
        key = file.codes[int(torch.randint(len(file.codes), (), generator=generator))]
        bytes_ = file.tensors[key]
        kind = i % 4
        if kind == 0:
            changed = torch.randint(0, 256, bytes_.shape, generator=generator, dtype=torch.uint8)
            with torch.no_grad():
                assert file.load({key: changed})(image).isfinite().all()
            continue
        changed = (bytes_[:-1], bytes_.repeat(2), bytes_.to(torch.int16))[kind - 1]
        file.refused("codes|bytes", tensors={key: changed})


def test_codes_outside_a_narrower_range_are_refused(tmp_path):
    """The grid of PAMS is symmetric: its codes leave the lowest one out, which the bits of a file can hold."""
    file = Packed(tmp_path, described(weight="PAMS"))
    file.refused(
        "is -4, its quantizer has -3 to 3", tensors={file.codes[0]: torch.zeros_like(file.tensors[file.codes[0]])}
    )


BLOB = "quantizers"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_quantizer_values_that_are_no_numbers(file, value):
    generator = torch.Generator().manual_seed(2)
    for _ in mutations(5):
        blob = file.tensors[BLOB].clone()
        blob[int(torch.randint(blob.numel(), (), generator=generator))] = value
        file.refused("quantizers holds NaN or infinity", tensors={BLOB: blob})


def test_scales_must_be_positive(file):
    for value in (0.0, -1.0):
        blob = file.tensors[BLOB].clone()
        blob[0] = value  # the scale of the first parameter
        file.refused("must be positive", tensors={BLOB: blob})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.double(), "torch.float64, expected torch.float32"),
        (lambda t: t.long(), "torch.int64, expected torch.float32"),
        (lambda t: t[:-1], "too few quantizer values"),
        (lambda t: torch.cat((t, t[:1])), "too many quantizer values"),
        (lambda t: t[:0], "too few quantizer values"),
        (lambda t: None, "no 'quantizers'"),
    ],
)
def test_quantizer_values_of_another_form(file, change, words):
    file.refused(words, tensors={BLOB: change(file.tensors[BLOB])})


@pytest.mark.parametrize(
    "change", [lambda t: t.long(), lambda t: t * float("nan"), lambda t: t.double(), lambda t: None]
)
def test_plain_tensors_are_numbers_of_their_type(file, change):
    file.refused("norm.weight", tensors={"norm.weight": change(file.tensors["norm.weight"])})


def site_names(file):
    from qmambair_basicsr.layers.sites import parameter_sites

    return [site.name for site in parameter_sites(file.load())]


@pytest.mark.parametrize(
    "held",
    [[-5], [0], [2**62, 4], [3.5], [True], ["7"], [[1]], "1", 7, None, {}, [1] * 9, [7]],
    ids=lambda held: str(held).replace(" ", ""),
)
def test_shapes_of_scales(file, held):
    name = site_names(file)[0]
    file.refused("a scale of shape|too (few|many) quantizer values", meta={"scale_shapes": json.dumps({name: held})})


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        ({"scale_shapes": "[]"}, "scale_shapes"),
        ({"scale_shapes": '{"nowhere": [1]}'}, "scale_shapes"),
        ({"scale_shapes": "null"}, "scale_shapes"),
        ({"scale_shapes": "{"}, "does not fit its description"),
        ({"scale_shapes": "[" * 100000}, "does not fit its description"),
        ({"bounded": '["nowhere"]'}, "bounded"),
        ({"bounded": "{}"}, "bounded"),
        ({"bounded": "7"}, "bounded"),
        ({"kinds": "[]"}, "kinds"),
        ({"kinds": '{"nowhere": {"type": "TableCodes", "tables": {}}}'}, "kinds"),
        ({"kinds": "{"}, "does not fit its description"),
        ({"network": "[]"}, "does not fit its description"),
        ({"network": "7"}, "does not fit its description"),
        ({"network": '{"type": "os.system"}'}, "does not fit its description"),
        ({"network": json.dumps(described() | {"num_heads": [0]})}, "does not fit its description"),
        ({"network": json.dumps(described() | {"window_size": -4})}, "does not fit|expected"),
        ({"network": json.dumps(described() | {"window_size": 8})}, "expected"),
        ({"network": json.dumps(described(bits=4))}, "bytes"),
        ({"network": json.dumps(described() | {"embed_dim": 10**9})}, "does not fit|bytes|expected"),
        ({"version": "\N{SUPERSCRIPT TWO}"}, "format version"),
        ({"version": "01"}, "format version"),
        ({"version": ""}, "format version"),
    ],
)
def test_hostile_metadata(file, meta, words):
    file.refused(words, meta=meta)


def test_bounds_of_an_affine_quantizer_are_refused(file):
    file.refused("bounded", meta={"bounded": json.dumps(site_names(file)[:1])})


# ---- constants of exported graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "grid",
    [
        (0.0, 0.0, -8, 7),
        (-1.0, 0.0, -8, 7),
        (float("nan"), 0.0, -8, 7),
        (1e-60, 0.0, -8, 7),
        (0.1, float("inf"), -8, 7),
        (0.1, 0.0, -9, 7),
        (0.1, 0.0, -8, 8),
        (0.1, 0.0, 5, 4),
        (0.1, 0.0, -8, float("nan")),
        (10**400, 0.0, -8, 7),
        ("0.1", 0.0, -8, 7),
        (None, 0.0, -8, 7),
        (True, 0.0, -8, 7),
    ],
    ids=lambda grid: str(grid)[:40],
)
def test_constant_grids_are_grids(grid):
    with pytest.raises(ValueError, match="are no grid of 4 bits"):
        FixedGrid(4).set_grid(*grid)


def test_constant_grids_of_a_file(net):
    frozen = copy.deepcopy(net)
    freeze_dls(frozen, [torch.rand(1, 3, 8, 8)])
    constants = constant_grids(frozen)
    assert constants
    set_constant_grids(copy.deepcopy(net), json.loads(json.dumps(constants)))
    name = next(iter(constants))
    for wrong in ([], {name: 7}, {name: [0.1, 0.0, -8]}, {name: None}, {"nowhere": constants[name]}, 7, None):
        with pytest.raises(ValueError, match=r"constant|no quantizer nowhere"):
            set_constant_grids(copy.deepcopy(net), wrong)
