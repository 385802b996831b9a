"""Validates Kubernetes manifests with published schemas, without a cluster.

The package kubernetes-validate has the JSON schemas of Kubernetes. The package kserve has no schemas but models that
KServe generates from its OpenAPI document; `_kserve_schema` turns them back into a JSON schema.
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
    """Returns one text for each violation of the schema of a manifest's kind."""
    if document["apiVersion"].startswith("serving.kserve.io/"):
        errors = _kserve_validator(document["apiVersion"], document["kind"]).iter_errors(document)
        return [f"{error.json_path}: {error.message}" for error in errors]
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{error.json_path}: {error.message}"]
    return []


@functools.cache
def _kserve_validator(api_version, kind):
    kubernetes = Resource.from_contents(
        schema_contents(f"kubernetes-json-schema/v{NEWEST}-local-strict/_definitions.json", NEWEST)
    )
    name = api_version.rpartition("/")[2].capitalize() + kind
    return jsonschema.Draft202012Validator(_kserve_schema(name, kubernetes), registry=kubernetes @ Registry())


def _kserve_schema(name, kubernetes):
    """Returns the JSON schema of a model of the package kserve; types of Kubernetes are references to `kubernetes`."""
    models = _kserve_models()
    definitions = {}

    def schema(type_name):
        """Returns the schema of a type that is written as in the models, such as `list[V1Container]`."""
        if found := re.fullmatch(r"list\[(.*)\]", type_name):
            return {"type": "array", "items": schema(found[1])}
        if found := re.fullmatch(r"dict[\[(]str, (.*)[\])]", type_name):
            return {"type": "object", "additionalProperties": schema(found[1])}
        if type_name in SIMPLE_TYPES:
            return {"type": SIMPLE_TYPES[type_name]}
        model = getattr(models, type_name, None)
        if model is None:
            return _kubernetes_reference(type_name, kubernetes)
        if type_name not in definitions:
            definitions[type_name] = {}  # ends the recursion of types that contain themselves
            definitions[type_name] = {
                "type": "object",
                "additionalProperties": False,
                "required": _required(model),
                "properties": {key: schema(model.openapi_types[field]) for field, key in model.attribute_map.items()},
            }
        return {"$ref": f"#/$defs/{type_name}"}

    return {**schema(name), "$defs": definitions}


SIMPLE_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "object": "object"}


def _required(model):
    """Returns the required properties of a model; its setters refuse None for them."""
    required = []
    for field, key in model.attribute_map.items():
        instance = model.__new__(model)
        instance.local_vars_configuration = types.SimpleNamespace(client_side_validation=True)
        try:
            setattr(instance, field, None)
        except ValueError:
            required.append(key)
    return required


def _kubernetes_reference(type_name, kubernetes):
    if type_name.startswith("K8sIoApiAppsV1"):
        candidates = ["io.k8s.api.apps.v1." + type_name.removeprefix("K8sIoApiAppsV1")]
    else:
        short = type_name.removeprefix("V1")
        candidates = [f"io.k8s.api.core.v1.{short}", f"io.k8s.apimachinery.pkg.apis.meta.v1.{short}"]
    name = next((each for each in candidates if each in kubernetes.contents["$defs"]), None)
    # A few types have no schema here; no manifest uses them, so they allow no value.
    return {"$ref": f"{kubernetes.id()}#/$defs/{name}"} if name else False


@functools.cache
def _kserve_models():
    """Imports kserve.models without the package around it, which needs a whole web server."""
    package = types.ModuleType("kserve")
    package.__path__ = list(importlib.util.find_spec("kserve").submodule_search_locations)
    sys.modules["kserve"] = package
    return importlib.import_module("kserve.models")
