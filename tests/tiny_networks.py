"""Constructor keys of a small network, for every registered type: each takes those that it knows."""

TINY_NETWORK = {
    "embed_dim": 30,
    "dim": 30,
    "depths": [2],
    "num_blocks": [1, 1, 1, 1],
    "num_refinement_blocks": 1,
    "num_heads": [2],
    "window_size": 8,
    "inner_rank": 4,
    "num_tokens": 8,
    "d_state": 3,
    "mlp_ratio": 1.2,
    "ssm_ratio": 1.2,
    "scan_len": 4,
    "mamba_cfg": {"scan_type": "diagonal", "scan_count": 2, "d_state": 3},
    "upscale": 2,
    "upsampler": "pixelshuffledirect",
}
