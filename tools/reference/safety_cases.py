"""Cases of the safety checker: images, and settings of its image processor."""

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor

import tiny_safety

CHECKPOINT = "sd1_safety"

# Height and width of an image, and the side of its blocks. The number of an image is its index here.
IMAGES = ((64, 64, 1), (37, 53, 4), (96, 40, 8), (16, 120, 3), (31, 31, 2), (75, 24, 16), (48, 49, 32), (33, 90, 5))

# Images of one call of the checker. Image 3 is flagged only because of a special care concept. Image 6 is as near to a
# concept as image 3 but near no special care concept; it is kept, whichever images are in the same call.
CALLS = ((0,), (1,), (3, 6), (6, 3), tuple(range(len(IMAGES))))

# A score closer to its threshold may be on the other side on another processor.
MIN_MARGIN = 0.003

# Further settings of the image processor, each with the number of an image.
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
    ("only-normalized", 6, {"size": 12, "crop_size": 12, "do_rescale": False, "image_mean": [99.5, 9, 0.3]}),
)


def make_image(number):
    """Makes an image of random blocks, u8 [height, width, 3]."""
    height, width, side = IMAGES[number]
    noise = np.random.Generator(np.random.PCG64(number))
    blocks = noise.integers(0, 256, (height // side + 1, width // side + 1, 3), dtype=np.uint8)
    return blocks.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


def run(pipeline):
    """Returns the tensors and the manifest of all cases."""
    checker = pipeline.safety_checker
    arrays = [make_image(number) for number in range(len(IMAGES))]
    images = [Image.fromarray(pixels) for pixels in arrays]
    tensors, cases, processors = {}, [], []
    for number, pixels in enumerate(arrays):
        tensors[f"image-{number}/rgb"] = torch.from_numpy(pixels)
        one = pipeline.feature_extractor(images[number], return_tensors="pt").pixel_values
        tensors[f"image-{number}/pixel_values"] = one[0]
    for call in CALLS:
        name = "call-" + "-".join(map(str, call))
        pixel_values = pipeline.feature_extractor([images[number] for number in call], return_tensors="pt").pixel_values
        margin = tiny_safety.margin(checker, pixel_values)
        if margin < MIN_MARGIN:
            raise SystemExit(f"{name}: a score is {margin:.4f} from its threshold: adjust the thresholds")
        image_embeds, special_care, concepts = tiny_safety.cosines(checker, pixel_values)
        _, flags = checker(clip_input=pixel_values, images=torch.ones(len(call), 1))
        tensors[f"{name}/image_embeds"] = image_embeds
        tensors[f"{name}/special_care"] = special_care
        tensors[f"{name}/concepts"] = concepts
        cases.append({"name": name, "checkpoint": CHECKPOINT, "images": call, "flags": flags})
    for name, number, config in PROCESSORS:
        processor = CLIPImageProcessor(**config)
        pixel_values = processor(images[number], return_tensors="pt").pixel_values
        tensors[f"{name}/pixel_values"] = pixel_values[0].float()
        processors.append({"name": name, "image": number, "config": config})
    return tensors, {"cases": cases, "processors": processors}
