"""MambaIRv2's models: registered, tiled, repeatable."""

from __future__ import annotations

import pytest
import torch
from basicsr.models import build_model

NET = {
    "embed_dim": 12,
    "d_state": 2,
    "depths": [2],
    "num_heads": [2],
    "window_size": 4,
    "inner_rank": 4,
    "num_tokens": 8,
    "mlp_ratio": 1.0,
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}


def model_of(arch: str, tile: object, routing: str):
    return build_model(
        {
            "model_type": f"{arch}Model",
            "network_g": {"type": arch, **NET, "eval_routing": routing},
            "scale": 2,
            "num_gpu": 0,
            "dist": False,
            "is_train": False,
            "path": {"pretrain_network_g": None},
            "val": {"tile": tile},
        }
    )


@pytest.mark.parametrize("routing", ["gumbel", "argmax"])
@pytest.mark.parametrize("arch", ["MambaIRv2", "MambaIRv2Light"])
def test_tiled_test_repeats_for_batches_and_single_images(arch, routing):
    model = model_of(arch, {"size": 12, "overlap": 4}, routing)
    images = torch.rand(2, 3, 14, 17)
    outputs = []
    for batch in (images, images[:1], images[1:], images):
        model.feed_data({"lq": batch})
        model.test()
        outputs.append(model.output)
    assert outputs[0].shape == (2, 3, 28, 34)
    assert torch.equal(outputs[0], outputs[3])
    assert torch.equal(torch.cat(outputs[1:3]), outputs[0])


def test_images_are_split_as_published_unless_told_otherwise():
    assert model_of("MambaIRv2Light", "release", "argmax").tile_plan(400).padded == 402
    assert len(model_of("MambaIRv2Light", False, "argmax").tile_plan(400).spans) == 1
