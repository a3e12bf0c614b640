"""Integer layers and products on the C++ kernels: codes and sums equal to exact arithmetic, on every instruction set."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from qmambair_basicsr.ops import native_library
from qmambair_basicsr.ops.integer import kernels
from qmambair_basicsr.ops.integer.kernels import CodeRows, IntegerLayer, Rows, pack
from tests.instruction_sets import in_use, libraries

pytestmark = pytest.mark.skipif(not native_library.is_available()[0], reason="the CPU kernels are not built")
SETS = libraries(("avx512", "avxvnni", "avx2", "dotprod", "portable"), "qm_integer_isa")
KINDS = ("float", "codes", "signed")


@pytest.fixture(params=SETS or ["none"], autouse=True)
def instruction_set(request):
    """Every test runs on each instruction set."""
    with in_use(request.param, SETS[request.param]) if SETS else contextlib.nullcontext():
        yield


@dataclass
class Layer:
    """A random layer and its exact results.

    Sums of weights are multiples of 1/8, so that float32 adds them up exactly in any order.
    """

    groups: int
    out: int  # of a group
    inputs: int  # of a group
    kernel: tuple[int, int] | None  # None: linear
    geometry: tuple = ((1, 1), (0, 0), (1, 1))
    weight_bits: int = 4
    bits: int = 4
    ones: bool = False
    shifted: bool = True
    bias: bool = True
    images: int = 1  # with grids of their own
    seed: int = 0

    def __post_init__(self):
        g = self.generator = torch.Generator().manual_seed(self.seed)
        channels, low = self.groups * self.out, -(2 ** (self.weight_bits - 1))
        shape = (self.groups, self.out, self.inputs, *(self.kernel or ()))
        codes = torch.randint(low, -low, shape, generator=g).to(torch.int8)
        codes[:, : (self.out + 1) // 2] = low  # the largest sums
        if self.ones:
            codes = torch.cat((codes, torch.ones_like(codes[:, :1])), 1)
        self.codes = codes.flatten(0, 1)
        self.zero = 2 ** (self.bits - 1)
        self.scale = torch.rand(self.codes.shape[0], generator=g) * 0.1 + 0.01
        self.factor = torch.randn(channels, generator=g) if self.ones else None
        taps = self.kernel or (1, 1)
        self.sums = torch.randint(-64, 65, (channels, *taps), generator=g) / 8 if self.shifted else None
        self.add = torch.randn(channels, generator=g) if self.bias else None
        step = torch.rand(self.images, generator=g) * 0.2 + 0.05
        shift = torch.randint(-8, 9, (self.images,), generator=g) / 8
        low, high = torch.full_like(step, -self.zero), torch.full_like(step, self.zero - 1)
        self.grid = torch.stack((step, shift if self.shifted else torch.zeros_like(shift), low, high), 1)
        self.weight = pack(self.codes, self.zero, groups=self.groups, ones=self.ones)

    def make(self, **options) -> IntegerLayer:
        stride, padding, dilation = self.geometry
        terms = {"bias": self.add, "sums": self.sums, "follows": True, "factor": self.factor}
        return IntegerLayer(
            self.weight, self.scale, **terms, stride=stride, padding=padding, dilation=dilation, **options
        )

    def input(self, shape, kind) -> tuple[Rows, torch.Tensor]:
        """Rows of an input (B, H, W) and their codes q, int64 (B, C, H, W); the first channel is at the lowest code."""
        x = torch.randn(*shape, self.groups * self.inputs, generator=self.generator)
        x[..., 0] = -100
        step, shift, low, high = self.grid.view(self.images, 4, 1, 1, 1).unbind(1)
        q = torch.clamp(torch.round((x + shift) / step), low, high).to(torch.int8)
        data = {"float": x, "signed": q, "codes": (q.short() + self.zero).to(torch.uint8)}[kind]
        return Rows(data.flatten(0, 2), self.grid, self.zero), q.long().permute(0, 3, 1, 2)

    def exact(self, q: torch.Tensor) -> torch.Tensor:
        """Result (B, C, H, W) in float32, rounded where the kernels round."""
        kernel = self.kernel or (1, 1)
        sums = F.conv2d(
            q.double(), self.codes.double().view(-1, self.inputs, *kernel), None, *self.geometry, self.groups
        )
        step, shift = self.grid.view(self.images, 4, 1, 1, 1).unbind(1)[:2]
        y = sums.float() * (step * self.scale.view(1, -1, 1, 1))
        if self.ones:
            y = y.unflatten(1, (self.groups, -1))
            y = y[:, :, :-1] - y[:, :, -1:] * self.factor.view(1, self.groups, -1, 1, 1)
            y = y.flatten(1, 2)
        bias = 0 if self.add is None else self.add.view(1, -1, 1, 1)
        if self.sums is None:
            return y + bias
        border = F.conv2d(
            torch.ones_like(y[:1, :1]).new_ones(1, 1, *q.shape[2:]), self.sums.unsqueeze(1), None, *self.geometry
        )
        return y - shift * border + bias if self.linear else y + bias - shift * border

    @property
    def linear(self) -> bool:
        return self.make().is_linear


def check(case: Layer, shape: tuple[int, int, int], kind: str) -> None:
    """All outputs of a layer, into wider rows that stay as they were beside them."""
    layer, channels = case.make(), case.groups * case.out
    rows, q = case.input(shape, kind)
    want = case.exact(q).permute(0, 2, 3, 1)
    count = want.shape[:3].numel()
    wide, bytes_ = torch.full((count, channels + 3), 7.5), torch.full((count, channels + 2), 9, dtype=torch.uint8)
    grid, fine = torch.tensor([0.5, 0.25, -8, 7]), torch.tensor([0.03, -1.0, -128, 127])
    second = torch.empty(count, channels, dtype=torch.uint8)
    assert (
        layer(rows, shape, out=wide[:, 1:-2], codes=[CodeRows(bytes_[:, 2:], grid, 8), CodeRows(second, fine, 128)])
        is not None
    )
    got = wide[:, 1:-2].reshape(want.shape)
    assert torch.equal(got, want)
    assert bool((wide[:, [0, -2, -1]] == 7.5).all()) and bool((bytes_[:, :2] == 9).all())
    for codes, (step, shift, low, high), zero in ((bytes_[:, 2:], grid, 8), (second, fine, 128)):
        expected = torch.clamp(torch.round((got + shift) / step), low, high) + zero
        assert torch.equal(codes.reshape(want.shape).float(), expected)


SIZES = st.sampled_from([1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 60, 64, 65, 72])
BITS = st.integers(2, 8)
GEOMETRY = st.tuples(*[st.tuples(*[st.integers(low, 2)] * 2) for low in (1, 0, 1)])


def layers(**options):
    """Random layers."""
    flags = dict.fromkeys(("ones", "shifted", "bias"), st.booleans())
    return st.builds(
        Layer, **flags, **options, weight_bits=BITS, bits=BITS, images=st.integers(1, 2), seed=st.integers(0, 99)
    )


def check_map(case: Layer, height: int, width: int, kind: str) -> None:
    """A convolution of maps of this size, or of the smallest ones that its kernel fits on."""
    _, padding, dilation = case.geometry
    sides = zip((height, width), dilation, case.kernel, padding, strict=True)
    check(case, (case.images, *(max(n, d * (k - 1) + 1 - 2 * p) for n, d, k, p in sides)), kind)


@settings(max_examples=40, deadline=None)
@given(
    case=layers(groups=st.just(1), out=SIZES, inputs=SIZES, kernel=st.none()),
    rows=st.integers(1, 64),
    kind=st.sampled_from(KINDS),
)
def test_linear(case, rows, kind):
    check(case, (case.images, 1, rows), kind)


@settings(max_examples=40, deadline=None)
@given(
    case=layers(
        groups=st.integers(1, 3),
        out=st.sampled_from([1, 2, 5, 16, 17, 60]),
        inputs=st.sampled_from([1, 3, 4, 6, 16]),
        kernel=st.tuples(st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 3])),
        geometry=GEOMETRY,
    ),
    height=st.integers(1, 9),
    width=st.integers(1, 20),
    kind=st.sampled_from(KINDS),
)
def test_convolution(case, height, width, kind):
    check_map(case, height, width, kind)


@settings(max_examples=40, deadline=None)
@given(
    case=layers(
        groups=st.sampled_from([2, 3, 16, 31, 33, 72, 180]),
        out=st.just(1),
        inputs=st.just(1),
        kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (1, 7)]),
        geometry=GEOMETRY,
    ),
    height=st.integers(1, 7),
    width=st.integers(1, 9),
    kind=st.sampled_from(KINDS),
)
def test_depthwise(case, height, width, kind):
    check_map(case, height, width, kind)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(*[st.integers(1, 3)] * 2),
    m=st.integers(1, 64),
    k=st.integers(1, 40),
    n=st.integers(1, 64),
    bits=st.tuples(BITS, BITS),
    kinds=st.tuples(*[st.sampled_from(KINDS)] * 2),
    transposed=st.booleans(),
    shifted=st.booleans(),
    seed=st.integers(0, 99),
)
def test_product(sizes, m, k, n, bits, kinds, transposed, shifted, seed):
    generator = torch.Generator().manual_seed(seed)
    sides, codes, grids = [], [], []
    for shape, width, kind in zip(
        ((*sizes, m, k), (*sizes, n, k) if transposed else (*sizes, k, n)), bits, kinds, strict=True
    ):
        zero = 2 ** (width - 1)
        grid = torch.tensor([0.25, 0.5, -zero, zero - 1])
        x = torch.randn(shape, generator=generator) * zero / 4
        x[..., 0] = -100
        q = torch.clamp(torch.round((x + 0.5) / 0.25), -zero, zero - 1).to(torch.int8)
        data = {"float": x, "signed": q, "codes": (q.short() + zero).to(torch.uint8)}[kind]
        sides.append(Rows(data, grid, zero)), codes.append(q.double()), grids.append(grid)
    a, b = sides
    if transposed:
        b, codes[1] = b._replace(data=b.data.transpose(-1, -2)), codes[1].transpose(-1, -2)
    wide = torch.full((*sizes, m, n + 2), 7.5)
    got = kernels.product(a, b, shifted=shifted, out=wide[..., 1:-1])
    values = [q * 0.25 - (0.5 if shifted else 0) for q in codes]  # exact: steps and shifts are powers of two
    assert torch.equal(got.double(), values[0] @ values[1])
    assert bool((wide[..., [0, -1]] == 7.5).all())


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activation_and_residual(activation):
    case, skip = Layer(1, 33, 20, None), torch.rand(33)
    rows, q = case.input((1, 1, 50), "float")
    plain = case.exact(q).permute(0, 2, 3, 1).view(50, 33)
    residual = torch.randn(50, 33)
    act = {"silu": F.silu, "gelu": F.gelu}[activation]
    for scale in (skip, torch.tensor([0.7]), None):
        out = residual.clone()
        case.make(activation=activation, residual_scale=scale)(rows, out=out, residual=out)
        want = act(plain.double()) + residual.double() * (1 if scale is None else scale.double())
        assert (out.double() - want).abs().max() < 2e-6 * want.abs().max()


@pytest.mark.parametrize("activation", ["silu", "gelu"])
def test_activations_far_from_zero(activation):
    """Values from -200 to 200 in one channel: nothing overflows, and tails keep their sign and size."""
    values = torch.linspace(-200, 200, 8001)
    layer = IntegerLayer(
        pack(torch.ones(1, 1, dtype=torch.int8), 128), torch.tensor([1.0]), activation=activation, bias=torch.zeros(1)
    )
    grid = torch.tensor([1.0, 0, -128, 127])
    codes = torch.arange(-128, 128).to(torch.int8).view(-1, 1)
    got = layer(Rows(codes, grid, 128)).flatten()
    want = {"silu": F.silu, "gelu": F.gelu}[activation](codes.flatten().double())
    assert (got.double() - want).abs().max() < 3e-5 and values.isfinite().all()
    assert (got.double() - want).abs()[codes.flatten().abs() < 20].max() < 3e-6


def test_nan_and_infinity_give_codes():
    x = torch.tensor([float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-42, 0.5, 1.5, -0.5] * 3)
    grid = torch.tensor([1.0, 0, -8, 7])
    assert kernels.quantize(x, grid, 8)[:9].tolist() == [8, 15, 0, 15, 0, 8, 8, 10, 8]
    assert kernels.quantize(x, grid, 8, signed=True)[-9:].tolist() == [0, 7, -8, 7, -8, 0, 0, 2, 0]
    wild = torch.tensor([1.0, 0, -1e9, 1e9])
    assert kernels.quantize(x, wild, 8)[:3].tolist() == [8, 16, 0], "codes stay within +-zero whatever the grid says"


@settings(max_examples=60, deadline=None)
@given(step=st.floats(0.0009765625, 1024, width=32), shift=st.floats(-3, 3, width=32), ulps=st.integers(-3, 3))
def test_codes_at_the_borders_between_two(step, shift, ulps):
    """Values within a few ulps of every border: the codes are those of a correctly rounded division."""
    step, shift = torch.tensor(step), torch.tensor(shift)
    x = (torch.arange(-140, 140) + 0.5) * step - shift
    x = (x.view(torch.int32) + ulps).view(torch.float32)
    got = kernels.quantize(x, torch.stack((step, shift, torch.tensor(-128.0), torch.tensor(127.0))), 128, signed=True)
    assert torch.equal(got.float(), torch.clamp(torch.round((x + shift) / step), -128, 127))


def test_threads_and_large_maps():
    case = Layer(1, 20, 12, (3, 3), ((1, 1), (1, 1), (1, 1)), images=2)
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            check(case, (2, 23, 70), "float")
            check(Layer(1, 20, 12, None, images=2), (2, 10, 50), "float")
            check(Layer(40, 1, 1, (3, 3), ((1, 1), (1, 1), (1, 1)), images=2), (2, 23, 9), "codes")
    finally:
        torch.set_num_threads(before)


def test_what_the_kernels_refuse():
    grid = torch.tensor([1.0, 0, -8, 7])
    weight = pack(torch.ones(4, 6, dtype=torch.int8), 8)
    layer = IntegerLayer(weight, torch.tensor([1.0]))
    x = torch.zeros(5, 6)
    with pytest.raises(ValueError, match="zero 8"):
        layer(Rows(x, grid, 4))
    with pytest.raises(ValueError, match=r"x must be .*\(5, 6\)"):
        layer(Rows(x[:, :5], grid, 8))
    with pytest.raises(ValueError, match="grid must be"):
        layer(Rows(x, grid[:3], 8))
    with pytest.raises(ValueError, match="out must be"):
        layer(Rows(x, grid, 8), out=torch.zeros(4, 5).t())
    with pytest.raises(ValueError, match="refuse"):
        layer(Rows(x, torch.zeros(3, 4), 8))  # three grids for five rows
    with pytest.raises(ValueError, match="scale has 3"):
        IntegerLayer(weight, torch.ones(3))
    with pytest.raises(ValueError, match="factor"):
        IntegerLayer(pack(torch.ones(4, 6, dtype=torch.int8), 8, ones=True), torch.ones(4))
    for shape, zero, groups in (
        ((4, 6), 0, 1),
        ((4, 6), 129, 1),
        ((4, 6, 16, 16), 8, 1),
        ((5, 6), 8, 2),
        ((1, 0), 8, 1),
    ):
        with pytest.raises(ValueError, match=r"no integer kernels|refuse"):
            pack(torch.ones(shape, dtype=torch.int8), zero, groups=groups)
    damaged = weight.blob.clone()
    damaged[8:12] = 255  # groups
    with pytest.raises(ValueError, match="refuse"):
        IntegerLayer(type(weight)(damaged, *list(vars(weight).values())[1:]), torch.ones(4))(Rows(x, grid, 8))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_longest_sums_do_not_saturate(bits):
    """All codes at their largest: 16-bit sums would overflow in 8 bits, and after 127 pairs in 4."""
    low = -(2 ** (bits - 1))
    for sign, code in ((1, low), (-1, -low - 1)):
        weights = torch.full((17, 5000), code, dtype=torch.int8)
        q = torch.full((7, 5000), low if sign > 0 else -low - 1, dtype=torch.int8)
        got = IntegerLayer(pack(weights, -low), torch.ones(1))(Rows(q, torch.tensor([1.0, 0, -128, 127]), -low))
        assert torch.equal(got.long(), q.long() @ weights.long().t())


def test_a_grid_wider_than_its_codes_cannot_overflow():
    """16-bit sums are proved for codes within +-zero: a grid that says more is held to that."""
    weights = torch.full((17, 3000), 7, dtype=torch.int8)
    wide = torch.tensor([1.0, 0, -1e9, 1e9])
    got = IntegerLayer(pack(weights, 8), torch.ones(1))(Rows(torch.full((5, 3000), 200.0), wide, 8))
    assert bool((got == 8 * 7 * 3000).all())
