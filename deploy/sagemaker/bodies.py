"""Builds requests for a Triton model behind SageMaker and reads responses, as JSON and in Triton's binary format."""

import base64
import json

from calls import DeployError

BINARY = "application/vnd.sagemaker-triton.binary+json;json-header-size="


def json_body(inputs):
    """Returns (body, content type) of a request with one batch element."""
    tensors = [{"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [text]} for name, text in inputs.items()]
    return json.dumps({"inputs": tensors}).encode(), "application/json"


def binary_body(inputs):
    """Returns (body, content type): a JSON header, then each text after its length (4 bytes, little endian)."""
    parts = [len(text.encode()).to_bytes(4, "little") + text.encode() for text in inputs.values()]
    tensors = [
        {"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(part)}}
        for name, part in zip(inputs, parts, strict=True)
    ]
    outputs = [{"name": "generated_image", "parameters": {"binary_data": True}}]
    header = json.dumps({"inputs": tensors, "outputs": outputs}).encode()
    return header + b"".join(parts), f"{BINARY}{len(header)}"


def images_of(body, content_type):
    """Returns the image files of a response in either format, and its parameters (seed, steps_run, ...)."""
    try:
        at = int(content_type.removeprefix(BINARY)) if content_type.startswith(BINARY) else len(body)
        response = json.loads(body[:at])
        texts = []
        for output in response["outputs"]:
            size = output.get("parameters", {}).get("binary_data_size")
            if size is not None and not 0 <= size <= len(body) - at:
                raise ValueError("the response is shorter than its header says")
            data, at = (output["data"], at) if size is None else (split(body[at : at + size]), at + size)
            texts += data if output["name"] == "generated_image" else []
        if not texts:
            raise ValueError("no image")
        return [base64.b64decode(text, validate=True) for text in texts], response.get("parameters", {})
    except (ValueError, KeyError, TypeError) as error:
        raise DeployError(f"unexpected response ({content_type}, {len(body)} bytes)") from error


def split(data):
    """Splits the data of a BYTES tensor into its elements."""
    elements, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise ValueError("an element is longer than the tensor")
        elements.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return elements
