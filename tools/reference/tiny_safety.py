"""A tiny safety checker, and the distance of images from its thresholds.

Its concepts are random directions, so its flags have no meaning. The thresholds are chosen: of the images in
text_to_image_cases.py and safety_cases.py, some are flagged and some are not, and one is flagged only because of a
special care concept. Every score is far enough from its threshold for the kernels of other processors.
"""

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from transformers import CLIPConfig, CLIPVisionConfig

from seeded_weights import fill

IMAGE_SIZE = 32

# The pixels must matter more than the positions; otherwise all images have one direction.
GAINS = {"class_embedding": 0.3, "position_embedding": 0.3, "patch_embedding": 3.0, "out_proj": 2.0, "v_proj": 1.5}

SPECIAL_CARE_THRESHOLDS = [0.605, 0.05, 0.21]
THRESHOLDS = [
    0.32,
    0.57,
    0.31,
    0.151,
    0.47,
    0.09,
    0.23,
    0.345,
    0.17,
    0.33,
    0.335,
    0.27,
    0.23,
    0.355,
    0.235,
    0.348,
    0.52,
]


def safety_checker(seed):
    """Makes the checker of Stable Diffusion 1.x with 32 x 32 pixels in 16 patches."""
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    model = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision.to_dict(), projection_dim=16))
    thresholds = {"special_care_embeds_weights": SPECIAL_CARE_THRESHOLDS, "concept_embeds_weights": THRESHOLDS}
    return fill(model, seed, GAINS, thresholds)


def cosines(checker, pixel_values):
    """Returns the embeddings of images, and their cosines with both lists of concepts."""
    image_embeds = checker.visual_projection(checker.vision_model(pixel_values)[1])
    special_care = cosine_distance(image_embeds, checker.special_care_embeds)
    return image_embeds, special_care, cosine_distance(image_embeds, checker.concept_embeds)


def margin(checker, pixel_values):
    """Returns the smallest distance of a score from its threshold, without rounding."""
    _, special_care, concepts = cosines(checker, pixel_values)
    special_care = special_care - checker.special_care_embeds_weights
    # A special care concept that is found lowers the thresholds of the concepts after it.
    found = (special_care > 0).cumsum(dim=1) > 0
    special_care[:, 1:] += 0.01 * found[:, :-1]
    concepts = concepts - checker.concept_embeds_weights + 0.01 * found[:, -1:]
    return float(torch.cat([special_care, concepts], dim=1).abs().min())
