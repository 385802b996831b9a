"""`make demo`: four models in one tritonserver, and a picture that goes through all of them.

Text to image; its objects recoloured by their depth; one of them removed by inpainting; the result enlarged four times.
The pictures go to target/demo/pictures, a contact sheet to demo.png, and demo.html shows each with its request.
"""

import argparse
import base64
import html
import io
import json
import pathlib
import shutil
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import tritonclient.grpc as grpcclient
from PIL import Image, ImageDraw
from tqdm import tqdm

DEMO = pathlib.Path(__file__).resolve().parent
ROOT = DEMO.parent
sys.path[:0] = [str(ROOT / "tools"), str(DEMO)]

import recognise  # noqa: E402
from server import TritonServer  # noqa: E402

MODELS = ("sd_base", "sd_depth", "sd_inpaint", "sd_upscale")


@dataclass
class Request:
    """One request of the walk: what it is about, the model, its texts, its pictures."""

    title: str
    model: str
    prompt: str
    gen_args: dict
    pictures: dict = field(default_factory=dict)
    negative_prompt: str = ""


@dataclass
class Answer:
    """The picture that came back, its response parameters, and how long it took in seconds."""

    picture: Image.Image
    file: bytes
    parameters: dict
    seconds: float


def make_repository(folder, checkpoints):
    """Writes a model repository: for each model of MODELS the demo's config.pbtxt and a link to its checkpoint."""
    if folder.exists():
        shutil.rmtree(folder)
    for model in MODELS:
        (folder / model / "1").mkdir(parents=True)
        shutil.copy(DEMO / "config.pbtxt", folder / model)
        (folder / model / "1" / "checkpoint").symlink_to(checkpoints / model, target_is_directory=True)


def png(picture):
    """The bytes of a PNG file."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def inputs_of(request):
    """The input tensors: one row, so that each has the shape [1, 1]."""
    values = {
        "prompt": request.prompt.encode(),
        "negative_prompt": request.negative_prompt.encode(),
        "gen_args": json.dumps(request.gen_args).encode(),
        **{name: base64.b64encode(png(picture)) for name, picture in request.pictures.items()},
    }
    tensors = []
    for name, value in values.items():
        tensor = grpcclient.InferInput(name, [1, 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[value]], dtype=np.object_))
        tensors.append(tensor)
    return tensors


def send(server, client, request):
    """Sends a request; a bar follows the model's counter of UNet calls, which the metrics endpoint tells."""
    done, got = threading.Event(), {}

    def received(result, error):
        got["result"], got["error"] = result, error
        done.set()

    def calls():
        return server.metric("diffusion_unet_calls_total", model=request.model) or 0

    before, started = calls(), time.monotonic()
    client.async_infer(request.model, inputs_of(request), received)
    steps = round(request.gen_args["num_inference_steps"] * request.gen_args.get("strength", 1))
    with tqdm(total=steps, desc=f"  {request.model}", unit="step", ncols=80) as bar:
        while not done.wait(0.1):
            bar.update(min(steps, calls() - before) - bar.n)
        if got["error"] is not None:
            raise got["error"]
        bar.update(steps - bar.n)
    file = base64.b64decode(got["result"].as_numpy("generated_image")[0, 0])
    parameters = {
        name: getattr(value, value.WhichOneof("parameter_choice"))
        for name, value in got["result"].get_response().parameters.items()
    }
    return Answer(Image.open(io.BytesIO(file)).convert("RGB"), file, parameters, time.monotonic() - started)


def mask_about(picture, colour, grow=0.3):
    """A mask, white where the thing of that colour lies and a share of its size around it, as a person would draw
    it."""
    found = recognise.things(np.asarray(picture)).get(colour)
    if found is None:
        raise SystemExit(f"the picture shows nothing {colour} to be removed")
    rows, columns = np.nonzero(found.mask)
    more = grow * max(np.ptp(rows), np.ptp(columns)) / 2
    mask = Image.new("L", picture.size, 0)
    box = [columns.min() - more, rows.min() - more, columns.max() + more, rows.max() + more]
    ImageDraw.Draw(mask).rectangle(box, fill=255)
    return mask


def walk(server):
    """The four requests, each with the picture of the one before; yields (request, answer)."""
    with grpcclient.InferenceServerClient(server.grpc_address) as client:

        def answered(request):
            print(
                f"{request.title}\n  prompt: {request.prompt}\n  gen_args: {json.dumps(request.gen_args)}", flush=True
            )
            return request, send(server, client, request)

        request, first = answered(
            Request(
                "1. Text to image",
                "sd_base",
                "a red star left of a blue circle on a green background",
                {"num_inference_steps": 30, "seed": 7},
            )
        )
        yield request, first
        request, second = answered(
            Request(
                "2. Restyled with its depth",
                "sd_depth",
                "a black star left of a purple circle on a striped yellow background",
                {"num_inference_steps": 30, "strength": 1.0, "seed": 7},
                {"image": first.picture},
            )
        )
        yield request, second
        request, third = answered(
            Request(
                "3. The star removed by inpainting",
                "sd_inpaint",
                "a striped yellow background",
                {"num_inference_steps": 30, "seed": 7, "height": 128, "width": 128},
                {"image": second.picture, "mask_image": mask_about(second.picture, "black")},
            )
        )
        yield request, third
        yield answered(
            Request(
                "4. Enlarged four times",
                "sd_upscale",
                "a purple circle on a striped yellow background",
                {"num_inference_steps": 20, "guidance_scale": 1.0, "seed": 7},
                {"image": third.picture},
            )
        )


def contact_sheet(steps, side=384):
    """All pictures beside each other, each with its title and prompt."""
    sheet = Image.new("RGB", (len(steps) * (side + 16) + 16, side + 84), "white")
    draw = ImageDraw.Draw(sheet)
    for n, (request, answer) in enumerate(steps):
        left = 16 + n * (side + 16)
        sheet.paste(answer.picture.resize((side, side), Image.Resampling.NEAREST), (left, 16))
        draw.text((left, side + 24), f"{request.title} ({answer.picture.width}x{answer.picture.height})", "black")
        words, line = request.prompt.split(), ""
        lines = []
        for word in words:
            if len(line) + len(word) > 60:
                lines.append(line)
                line = ""
            line = f"{line} {word}".strip()
        draw.text((left, side + 42), "\n".join([*lines, line]), "#444")
    return sheet


def page(steps):
    """A page that holds the pictures and shows each with its request."""

    def shown(picture, words):
        data = base64.b64encode(png(picture)).decode()
        caption = f"<figcaption>{html.escape(words)}</figcaption>"
        return f'<figure><img src="data:image/png;base64,{data}" alt="">{caption}</figure>'

    parts = []
    for request, answer in steps:
        rows = {"model": request.model, "prompt": request.prompt, "gen_args": json.dumps(request.gen_args)}
        told = ", ".join(f"{name} {value}" for name, value in answer.parameters.items())
        rows |= {"response": f"{told}; {answer.seconds:.1f} s"}
        table = "".join(f"<tr><th>{name}</th><td>{html.escape(text)}</td></tr>" for name, text in rows.items())
        pictures = "".join(shown(picture, name) for name, picture in request.pictures.items())
        parts.append(
            f"<section><h2>{html.escape(request.title)}</h2><table>{table}</table><div>{pictures}"
            f"{shown(answer.picture, 'generated_image')}</div></section>"
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
<p>One tritonserver, four models, each answer the next one's input. The checkpoints are the small ones of
demo/models.</p> {"".join(parts)}
</html>
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--checkpoints", type=pathlib.Path, default=DEMO / "models", help="folder of the four checkpoints"
    )
    parser.add_argument("--out", type=pathlib.Path, default=ROOT, help="where demo.png and demo.html go")
    parser.add_argument("--serve", action="store_true", help="then go on serving on ports 8000 to 8002, until Ctrl-C")
    arguments = parser.parse_args()

    work = ROOT / "target" / "demo"
    make_repository(work / "model_repository", arguments.checkpoints.resolve())
    pictures = work / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    print("starting tritonserver ...", flush=True)
    started = time.monotonic()
    ports = (8000, 8001, 8002) if arguments.serve else None
    with TritonServer(work / "model_repository", work / "server.log", models=MODELS, ports=ports) as server:
        print(f"ready after {time.monotonic() - started:.1f} s, with {', '.join(MODELS)} loaded", flush=True)
        steps = []
        for n, (request, answer) in enumerate(walk(server), 1):
            file = pictures / f"{n}-{request.model}.png"
            file.write_bytes(answer.file)
            size = f"{answer.picture.width}x{answer.picture.height}"
            print(f"  {size} in {answer.seconds:.1f} s: {file.relative_to(ROOT)}", flush=True)
            steps.append((request, answer))
        contact_sheet(steps).save(arguments.out / "demo.png")
        (arguments.out / "demo.html").write_text(page(steps), encoding="utf-8")
        print(f"wrote {arguments.out / 'demo.png'} and {arguments.out / 'demo.html'}", flush=True)
        if arguments.serve:
            # Ends as Ctrl-C does, with the server.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            print(f"serving on http {server.http_address}, grpc {server.grpc_address}; Ctrl-C ends it", flush=True)
            try:
                while server.is_alive():
                    time.sleep(1)
            except KeyboardInterrupt:
                pass


if __name__ == "__main__":
    main()
