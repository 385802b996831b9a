"""A tiny safety checker, and how far a picture is from its thresholds.

Its concepts are directions at random, so that what it flags means nothing. The thresholds were found by measurement: of the
pictures in picture_cases.py and safety_cases.py some are flagged and some are not, one is flagged because of a special
care concept alone, and each is far enough from every threshold that another processor's kernels agree.
"""

import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker, cosine_distance
from transformers import CLIPConfig, CLIPVisionConfig

from seeded_weights import fill

IMAGE_SIZE = 32

# The picture must matter more than its place, or all pictures would have one direction.
GAINS = {"class_embedding": 0.3, "position_embedding": 0.3, "patch_embedding": 3.0, "out_proj": 2.0, "v_proj": 1.5}

SPECIAL_CARE_THRESHOLDS = [0.605, 0.05, 0.21]
THRESHOLDS = [0.32, 0.57, 0.31, 0.151, 0.47, 0.09, 0.23, 0.345, 0.17, 0.33, 0.335, 0.27, 0.23, 0.355, 0.235, 0.348, 0.52]


def safety_checker(seed):
    """The checker of Stable Diffusion 1.x, with 32 x 32 pixels in 16 patches."""
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
    """Embeddings of pictures and their cosines with both lists of concepts, as the checker has them before it decides."""
    image_embeds = checker.visual_projection(checker.vision_model(pixel_values)[1])
    special_care = cosine_distance(image_embeds, checker.special_care_embeds)
    return image_embeds, special_care, cosine_distance(image_embeds, checker.concept_embeds)


def margin(checker, pixel_values):
    """How far the nearest of all scores is from the edge between kept and flagged, without rounding."""
    _, special_care, concepts = cosines(checker, pixel_values)
    special_care = special_care - checker.special_care_embeds_weights
    # A special care concept that is found lowers the limits of the others that follow.
    found = (special_care > 0).cumsum(dim=1) > 0
    special_care[:, 1:] += 0.01 * found[:, :-1]
    concepts = concepts - checker.concept_embeds_weights + 0.01 * found[:, -1:]
    return float(torch.cat([special_care, concepts], dim=1).abs().min())
