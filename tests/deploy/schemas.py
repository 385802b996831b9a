"""Holds Kubernetes manifests to published descriptions, without a cluster.

Kubernetes' own kinds: the JSON schemas in the package kubernetes-validate. KServe's kinds: the models in the package
kserve, generated from KServe's OpenAPI document; what of Kubernetes is in them is again held to the JSON schemas.
"""

import functools
import importlib
import importlib.util
import re
import sys
import types

import jsonschema
import kubernetes_validate
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

NEWEST = kubernetes_validate.latest_version()
OLDEST = "1.29"


def violations(document, version=NEWEST):
    """What a manifest has that its kind does not allow, one text each."""
    if document["apiVersion"].startswith("serving.kserve.io/"):
        name = document["apiVersion"].rpartition("/")[2].capitalize() + document["kind"]
        return list(_kserve(document, name, document["kind"]))
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.absolute_path))}: {error.message}"]
    return []


def _kserve(value, type_name, path):
    """The violations of a value whose type is named as KServe's models do it, such as `list[V1Container]`."""
    found = re.fullmatch(r"(list|dict)[\[(](?:str, )?(.*)[\])]", type_name)
    if found:
        if not isinstance(value, {"list": list, "dict": dict}[found[1]]):
            yield f"{path}: not a {found[1]}"
            return
        for key, each in enumerate(value) if found[1] == "list" else value.items():
            yield from _kserve(each, found[2], f"{path}.{key}")
    elif type_name in ("str", "int", "bool"):
        if type(value).__name__ != type_name:
            yield f"{path}: {value!r} is not {type_name}"
    elif (model := getattr(_models(), type_name, None)) is not None:
        yield from _model(value, model, path)
    else:
        yield from _kubernetes(value, type_name, path)


def _model(value, model, path):
    if not isinstance(value, dict):
        yield f"{path}: not an object"
        return
    names = {key: name for name, key in model.attribute_map.items()}
    for key in value.keys() - names.keys():
        yield f"{path}: {key} is not known"
    known = {names[key]: each for key, each in value.items() if key in names}
    try:
        # The model itself says what must not be missing.
        model(**known)
    except ValueError as error:
        yield f"{path}: {error}"
    for name, each in known.items():
        yield from _kserve(each, model.openapi_types[name], f"{path}.{model.attribute_map[name]}")


def _kubernetes(value, type_name, path):
    definitions = _definitions()
    if type_name.startswith("K8sIoApiAppsV1"):
        candidates = ["io.k8s.api.apps.v1." + type_name.removeprefix("K8sIoApiAppsV1")]
    else:
        short = type_name.removeprefix("V1")
        candidates = [f"io.k8s.api.core.v1.{short}", f"io.k8s.apimachinery.pkg.apis.meta.v1.{short}"]
    name = next((each for each in candidates if each in definitions.contents["$defs"]), None)
    if name is None:
        raise LookupError(f"{path}: no schema for {type_name}")
    validator = jsonschema.Draft202012Validator(
        {"$ref": f"{definitions.id()}#/$defs/{name}"}, registry=definitions @ Registry()
    )
    for error in validator.iter_errors(value):
        yield f"{'.'.join(map(str, [path, *error.absolute_path]))}: {error.message}"


@functools.cache
def _definitions():
    folder = f"kubernetes-json-schema/v{NEWEST}-local-strict"
    return Resource.from_contents(schema_contents(f"{folder}/_definitions.json", NEWEST))


@functools.cache
def _models():
    """The package kserve.models; the package around it is left out, since it wants a whole web server."""
    package = types.ModuleType("kserve")
    package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
    sys.modules["kserve"] = package
    return importlib.import_module("kserve.models")
