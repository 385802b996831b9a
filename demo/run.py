"""`make demo`: sends one image through four models of one tritonserver, and generates it again with a LoRA.

The models generate an image, recolour its objects by their depth, remove one of them by inpainting, and enlarge the
result four times. The last request is the first one with a LoRA, which gives the image another background. The
images go to target/demo/images, a contact sheet to demo.png, and demo.html shows each image with its request.
"""

import argparse
import contextlib
import html
import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "tools"))

import shape_classifier
from client import Response, parameter, read_response, stream, to_base64
from server import ROOT, TritonServer

DEMO = ROOT / "demo"
MODELS = ("sd_base", "sd_depth", "sd_inpaint", "sd_upscale")


@dataclass
class Request:
    """One request of the demo: a title, the model, the texts, the input images."""

    title: str
    model: str
    prompt: str
    gen_args: dict
    images: dict = field(default_factory=dict)
    negative_prompt: str = ""

    def inputs(self):
        """Returns the values of the inputs, one batch element each."""
        images = {name: to_base64(image) for name, image in self.images.items()}
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "gen_args": self.gen_args,
            **images,
        }


@dataclass
class Result:
    """The image of a response, the response, and its time in seconds."""

    image: Image.Image
    response: Response
    seconds: float


def make_repository(folder, checkpoints):
    """Writes a model repository: for each of MODELS the demo's config.pbtxt and a link to the checkpoint.

    The model that generates images has a link to the LoRAs as well.
    """
    if folder.exists():
        shutil.rmtree(folder)
    # With it, requests get their progress.
    decoupled = "model_transaction_policy { decoupled: true }\n"
    for model in MODELS:
        (folder / model / "1").mkdir(parents=True)
        (folder / model / "config.pbtxt").write_text((DEMO / "config.pbtxt").read_text() + decoupled)
        (folder / model / "1" / "checkpoint").symlink_to(checkpoints / model, target_is_directory=True)
    (folder / "sd_base" / "1" / "loras").symlink_to(checkpoints / "loras", target_is_directory=True)


def send(server, request):
    """Sends a request. A progress bar follows the steps that the responses tell."""
    started = time.monotonic()
    inputs = request.inputs()
    inputs["gen_args"] = {**request.gen_args, "progress_every": 1, "preview": "off"}
    steps = round(request.gen_args["num_inference_steps"] * request.gen_args.get("strength", 1))
    with tqdm(total=steps, desc=f"  {request.model}", unit="step", ncols=80) as bar:
        for result in stream(server.grpc_address, request.model, inputs):
            bar.update((parameter(result, "step") or steps) - bar.n)
    response = read_response(result)
    image = Image.open(io.BytesIO(response.image)).convert("RGB")
    return Result(image, response, time.monotonic() - started)


def mask_of_object(image, color, grow=0.3):
    """Makes a mask that is white over the object of a color and a margin, like a mask drawn by hand.

    The margin is half of `grow` times the size of the object.
    """
    found = shape_classifier.objects(np.asarray(image)).get(color)
    if found is None:
        raise SystemExit(f"the image shows no {color} object to remove")
    y, x = np.nonzero(found.mask)
    margin = grow * max(np.ptp(y), np.ptp(x)) / 2
    mask = Image.new("L", image.size, 0)
    box = [x.min() - margin, y.min() - margin, x.max() + margin, y.max() + margin]
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def run(server):
    """Sends four requests, each with the image of the one before, then the first with a LoRA.

    Yields (request, result).
    """

    def finished(request):
        print(request.title)
        print(f"  prompt: {request.prompt}\n  gen_args: {json.dumps(request.gen_args)}", flush=True)
        return request, send(server, request)

    text_to_image = Request(
        "1. Text to image",
        "sd_base",
        "a red star left of a blue circle on a green background",
        {"num_inference_steps": 30, "seed": 7},
    )
    request, first = finished(text_to_image)
    yield request, first
    request, second = finished(
        Request(
            "2. Recoloured by depth",
            "sd_depth",
            "a black star left of a purple circle on a striped yellow background",
            {"num_inference_steps": 30, "strength": 1.0, "seed": 7},
            {"image": first.image},
        )
    )
    yield request, second
    request, third = finished(
        Request(
            "3. The star removed by inpainting",
            "sd_inpaint",
            "a striped yellow background",
            {"num_inference_steps": 30, "seed": 7, "height": 128, "width": 128},
            {"image": second.image, "mask_image": mask_of_object(second.image, "black")},
        )
    )
    yield request, third
    yield finished(
        Request(
            "4. Enlarged four times",
            "sd_upscale",
            "a purple circle on a striped yellow background",
            {"num_inference_steps": 20, "guidance_scale": 1.0, "seed": 7},
            {"image": third.image},
        )
    )
    yield finished(
        replace(
            text_to_image,
            title="5. The first request with a LoRA",
            gen_args={**text_to_image.gen_args, "loras": [{"name": "cutout", "scale": 1.0}]},
        )
    )


def contact_sheet(steps, side=384):
    """Draws all images next to each other, each with its title and prompt."""
    sheet = Image.new("RGB", (len(steps) * (side + 16) + 16, side + 84), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (request, result) in enumerate(steps):
        left = 16 + n * (side + 16)
        sheet.paste(result.image.resize((side, side), Image.Resampling.NEAREST), (left, 16))
        draw.text((left, side + 24), f"{request.title} ({result.image.width}x{result.image.height})", "black")
        draw.text((left, side + 42), "\n".join(textwrap.wrap(request.prompt, 61)), "#444")
    return sheet


def page(steps):
    """Makes an HTML page that contains the images and shows each with its request."""

    def figure(image, caption):
        caption = f"<figcaption>{html.escape(caption)}</figcaption>"
        return f'<figure><img src="data:image/png;base64,{to_base64(image)}" alt="">{caption}</figure>'

    sections = []
    for request, result in steps:
        parameters = ", ".join(f"{name} {value}" for name, value in result.response.parameters.items())
        lines = {
            "model": request.model,
            "prompt": request.prompt,
            "gen_args": json.dumps(request.gen_args),
            "response": f"{parameters}; {result.seconds:.1f} s",
        }
        table = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in lines.items())
        images = "".join(figure(image, name) for name, image in request.images.items())
        sections.append(
            f"<section><h2>{html.escape(request.title)}</h2><table>{table}</table><div>{images}"
            f"{figure(result.image, 'generated_image')}</div></section>"
        )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>triton-diffusion: the demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
div {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: end }}
figure {{ margin: 0.5rem 0 }} figcaption {{ color: #666 }}
img {{ width: 256px; image-rendering: pixelated; border: 1px solid #ddd }}
th {{ text-align: left; padding-right: 1rem; vertical-align: top; font-weight: 600 }}
</style>
<h1>triton-diffusion: the demo</h1>
<p>One tritonserver, four models; each of the first three images is the input of the next request. The last request is
the first one with a LoRA. The checkpoints and the LoRA are the small ones of demo/models.</p> {"".join(sections)}
</html>
"""


@contextlib.contextmanager
def gateway(server):
    """Runs the gateway in front of a server. Yields the address of its page."""
    command = [ROOT / "dist" / "bin" / "triton-diffusion", "gateway", "--triton", server.grpc_address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        # The line "listening on http://..."; there is none if the port is taken.
        line = process.stdout.readline()
        if not line:
            raise SystemExit("the gateway does not start")
        yield line.split()[-1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoints", type=pathlib.Path, default=DEMO / "models", help="folder of the four checkpoints and of loras"
    )
    parser.add_argument("--out", type=pathlib.Path, default=ROOT, help="folder for demo.png and demo.html")
    parser.add_argument(
        "--serve", action="store_true", help="keep the server on ports 8000 to 8002, and the page on 8080, until Ctrl-C"
    )
    arguments = parser.parse_args()

    work = ROOT / "target" / "demo"
    make_repository(work / "model_repository", arguments.checkpoints.resolve())
    images = work / "images"
    images.mkdir(parents=True, exist_ok=True)
    print("starting tritonserver ...", flush=True)
    started = time.monotonic()
    ports = (8000, 8001, 8002) if arguments.serve else None
    with TritonServer(work / "model_repository", work / "server.log", models=MODELS, ports=ports) as server:
        print(f"ready after {time.monotonic() - started:.1f} s, with {', '.join(MODELS)} loaded", flush=True)
        steps = []
        for n, (request, result) in enumerate(run(server), 1):
            file = images / f"{n}-{request.model}.png"
            file.write_bytes(result.response.image)
            size = f"{result.image.width}x{result.image.height}"
            print(f"  {size} in {result.seconds:.1f} s: {file.relative_to(ROOT)}", flush=True)
            steps.append((request, result))
        contact_sheet(steps).save(arguments.out / "demo.png")
        (arguments.out / "demo.html").write_text(page(steps), encoding="utf-8")
        print(f"wrote {arguments.out / 'demo.png'} and {arguments.out / 'demo.html'}", flush=True)
        if arguments.serve:
            # SIGTERM stops the server too, as Ctrl-C does.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            with contextlib.suppress(KeyboardInterrupt), gateway(server) as page_address:
                print(f"serving on http {server.http_address}, grpc {server.grpc_address}", flush=True)
                print(f"the page: {page_address}; Ctrl-C stops it", flush=True)
                while server.is_alive():
                    time.sleep(1)


if __name__ == "__main__":
    main()
