"""A small DPT-Hybrid (Ranftl et al. 2021) that estimates the depth of a scene from its image."""

import numpy as np
import torch
from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

import scenes
from latents import SIDE, tensor
from training import Training, rng

STEPS, BATCH = 700, 12


def build():
    """Makes the depth estimator with random weights."""
    torch.manual_seed(rng("depth").integers(2**31))
    return DPTForDepthEstimation(
        DPTConfig(
            is_hybrid=True,
            backbone_config={
                "model_type": "bit",
                "depths": [1, 1, 2],
                "embedding_size": 16,
                "hidden_sizes": [32, 48, 64, 96],
                "num_groups": 8,
                "hidden_act": "relu",
                "layer_type": "bottleneck",
                "global_padding": "SAME",
                "embedding_dynamic_padding": True,
                "drop_path_rate": 0.0,
                "out_features": ["stage1", "stage2", "stage3"],
            },
            backbone_featmap_shape=[1, 64, SIDE // 16, SIDE // 16],
            backbone_out_indices=[0, 1, 2, 3],
            neck_ignore_stages=[0, 1],
            neck_hidden_sizes=[32, 48, 48, 48],
            reassemble_factors=[1, 1, 1, 0.5],
            fusion_hidden_size=24,
            hidden_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=256,
            image_size=SIDE,
            patch_size=16,
            readout_type="project",
            qkv_bias=True,
        )
    )


def processor():
    """Makes the image processor of the depth estimator."""
    return DPTImageProcessor(
        size={"height": SIDE, "width": SIDE}, resample=2, keep_aspect_ratio=False, ensure_multiple_of=1
    )


def train(work):
    """Trains with the absolute error of the depth times ten: at this scale the model's last ReLU learns fastest."""
    model = build()

    def batch(step):
        generator = rng("depth", step)
        rendered = [scenes.render(scenes.sample(generator), SIDE) for _ in range(BATCH)]
        return tensor([image for image, _ in rendered]), torch.from_numpy(
            np.stack([depth for _, depth in rendered])
        ) * 10

    def loss(batch, _):
        error = (model(batch[0]).predicted_depth - batch[1]).abs().mean()
        return error, {}

    Training(work, "depth_estimator", {"depth_estimator": model}, STEPS, 1e-3, average=0.99).run(batch, loss)
    return model
