"""Tiles cover every pixel once, and an identity network gives the image back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from qmambair_basicsr.inference.tiling import fixed_spans, pad_to, parse_tile_option, release_spans, run_tiled

SIZES = [(1, 1), (1, 7), (199, 200), (200, 201), (401, 30), (5, 613), (400, 400)]
OPTIONS = ["release", False, {"size": 64, "overlap": 8}, {"size": 1, "overlap": 0}, {"size": 50, "overlap": 49}]


def check_axis(plan, length):
    kept = [p for span in plan.spans for p in range(span.keep_start, span.keep_stop)]
    assert kept == list(range(plan.padded))
    assert plan.padded >= length
    for span in plan.spans:
        assert 0 <= span.start <= span.keep_start < span.keep_stop <= span.stop <= plan.padded


@given(st.integers(1, 3000))
@settings(deadline=None)
def test_release_spans_keep_every_pixel_once(length):
    plan = release_spans(length)
    check_axis(plan, length)
    assert len(plan.spans) == length // 200 + 1
    assert plan.padded - length < len(plan.spans)


@given(st.integers(1, 700), st.integers(1, 300), st.data())
@settings(deadline=None)
def test_fixed_spans_have_one_size_and_share_the_overlap(length, size, data):
    overlap = data.draw(st.integers(0, size - 1))
    plan = fixed_spans(length, size, overlap)
    check_axis(plan, length)
    assert {span.stop - span.start for span in plan.spans} == {min(size, length)}
    for left, right in zip(plan.spans, plan.spans[1:], strict=False):
        assert left.stop - right.start >= overlap


def test_release_protocol_by_hand():
    """401 pixels: 3 parts of 134 on 402 padded pixels, margins of 13 towards neighbours only."""
    spans = release_spans(401)
    assert spans.padded == 402
    assert [(s.start, s.stop, s.keep_start, s.keep_stop) for s in spans.spans] == [
        (0, 147, 0, 134),
        (121, 281, 134, 268),
        (255, 402, 268, 402),
    ]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("option", OPTIONS, ids=str)
@pytest.mark.parametrize("scale", [1, 3])
def test_identity_network_returns_the_image(size, option, scale):
    if option == {"size": 1, "overlap": 0} and size[0] * size[1] > 2000:
        size = (31, 17)  # one tile per pixel
    if option == {"size": 50, "overlap": 49}:
        size = min(size[0], 70), min(size[1], 70)
    x = torch.rand(2, 3, *size)
    y = run_tiled(lambda t: t.repeat_interleave(scale, -2).repeat_interleave(scale, -1), x, parse_tile_option(option))
    assert torch.equal(y, x.repeat_interleave(scale, -2).repeat_interleave(scale, -1))


def test_seams_vanish_when_the_margin_covers_the_receptive_field():
    x = torch.rand(1, 1, 90, 75, dtype=torch.float64)
    blur = torch.rand(1, 1, 5, 5, dtype=torch.float64)
    tiled = run_tiled(lambda t: F.conv2d(t, blur, padding=2), x, parse_tile_option({"size": 32, "overlap": 8}))
    torch.testing.assert_close(tiled, F.conv2d(x, blur, padding=2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(1, 1), (3, 9), (16, 16), (17, 31)])
def test_network_sees_multiples_only(size):
    seen = []

    def network(t):
        seen.append(tuple(t.shape[-2:]))
        return t * 2

    x = torch.rand(1, 2, *size)
    assert torch.equal(run_tiled(network, x, parse_tile_option(False), multiple=8), x * 2)
    assert all(h % 8 == 0 and w % 8 == 0 for h, w in seen)


def test_padding_mirrors_then_repeats():
    x = torch.tensor([[1.0, 2.0, 3.0]])[None, None]
    assert pad_to(x, 1, 7).flatten().tolist() == [1, 2, 3, 2, 1, 2, 3]
    assert pad_to(x, 3, 3)[0, 0].tolist() == [[1, 2, 3]] * 3


def test_output_that_is_not_a_multiple_is_refused():
    with pytest.raises(ValueError, match="whole multiple"):
        run_tiled(lambda t: t[..., :-1], torch.rand(1, 1, 8, 8), parse_tile_option(False))


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"size": 10, "overlp": 1}, "overlp.*size, overlap"),
        ({"overlap": 3}, "'size'"),
        ({"size": 0}, "at least 1"),
        ({"size": 10, "overlap": 10}, "0..9"),
        ({"size": 10.5}, "whole number"),
        ("whole", "release, false"),
    ],
)
def test_bad_options_are_named(option, words):
    with pytest.raises(ValueError, match=words):
        parse_tile_option(option)
