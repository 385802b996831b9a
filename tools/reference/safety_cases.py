"""Pictures that the safety checker looks at, and settings of the image processor before it."""

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import tiny_safety

CHECKPOINT = "sd1_safety"

# Height, width and the side of the blocks that a picture is made of. A picture's number is its place in this list.
PICTURES = ((64, 64, 1), (37, 53, 4), (96, 40, 8), (16, 120, 3), (31, 31, 2), (75, 24, 16), (48, 49, 32), (33, 90, 5))

# Pictures that go through the checker in one call. 3 is flagged because of a special care concept alone; 6 is as near to
# a concept as 3, but to no special care concept, and is kept whatever is beside it.
CALLS = ((0,), (1,), (3, 6), (6, 3), tuple(range(len(PICTURES))))

# A score that is nearer to its edge may fall to the other side on another processor.
LEAST_MARGIN = 0.003

# Settings of the image processor beyond the checkpoint's, each with a picture.
PROCESSORS = (
    (
        "old-form",
        1,
        {
            "crop_size": 20,
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_resize": True,
            "feature_extractor_type": "CLIPFeatureExtractor",
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "resample": 3,
            "size": 20,
        },
    ),
    ("crop-to-odd", 7, {"size": {"shortest_edge": 18}, "crop_size": {"height": 13, "width": 15}}),
    ("pad", 2, {"size": {"shortest_edge": 6}, "crop_size": {"height": 17, "width": 11}}),
    ("pad-one-side", 3, {"size": 8, "crop_size": 15, "image_mean": 0.5, "image_std": 0.25}),
    ("whole", 5, {"size": {"height": 10, "width": 13}, "do_center_crop": False, "resample": 2}),
    ("square", 5, {"size": 12, "do_center_crop": False, "use_square_size": True, "resample": 1}),
    ("as-it-is", 4, {"do_resize": False, "do_center_crop": False}),
    ("bytes", 3, {"size": 12, "crop_size": 12, "do_rescale": False, "do_normalize": False}),
    ("only-rescaled", 6, {"size": 12, "crop_size": 12, "resample": 0, "do_normalize": False, "rescale_factor": 0.013}),
    ("only-normalised", 6, {"size": 12, "crop_size": 12, "do_rescale": False, "image_mean": [99.5, 9, 0.3]}),
)


def picture(number):
    """Blocks of random colours, u8 [height, width, 3]."""
    height, width, side = PICTURES[number]
    noise = np.random.Generator(np.random.PCG64(number))
    blocks = noise.integers(0, 256, (height // side + 1, width // side + 1, 3), dtype=np.uint8)
    return blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


def run(pipeline):
    """The tensors and the manifest of all cases."""
    checker = pipeline.safety_checker
    pictures = [picture(number) for number in range(len(PICTURES))]
    images = [Image.fromarray(pixels) for pixels in pictures]
    tensors, cases, processors = {}, [], []
    for number, pixels in enumerate(pictures):
        tensors[f"picture-{number}/rgb"] = torch.from_numpy(pixels)
        one = pipeline.feature_extractor(images[number], return_tensors="pt").pixel_values
        tensors[f"picture-{number}/pixel_values"] = one[0]
    for call in CALLS:
        name = "call-" + "-".join(map(str, call))
        pixel_values = pipeline.feature_extractor([images[number] for number in call], return_tensors="pt").pixel_values
        margin = tiny_safety.margin(checker, pixel_values)
        if margin < LEAST_MARGIN:
            raise SystemExit(f"{name}: a score is {margin:.4f} from its edge: adjust the thresholds")
        image_embeds, special_care, concepts = tiny_safety.cosines(checker, pixel_values)
        _, flags = checker(clip_input=pixel_values, images=torch.ones(len(call), 1))
        tensors[f"{name}/image_embeds"] = image_embeds
        tensors[f"{name}/special_care"] = special_care
        tensors[f"{name}/concepts"] = concepts
        cases.append({"name": name, "checkpoint": CHECKPOINT, "pictures": call, "flags": flags})
    for name, number, config in PROCESSORS:
        processor = CLIPImageProcessor(**config)
        pixel_values = processor(images[number], return_tensors="pt").pixel_values
        tensors[f"{name}/pixel_values"] = pixel_values[0].float()
        processors.append({"name": name, "picture": number, "config": config})
    return tensors, {"cases": cases, "processors": processors}
