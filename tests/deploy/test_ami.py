"""`deploy` requests a host whose driver fits the backend's CUDA, from the AMIs that botocore's description lists."""

import re

import botocore.session
import pytest

import arguments
from test_dry_run import dry
from test_endpoint import DEPLOY

SERVICE = botocore.session.get_session().get_service_model("sagemaker")
FIELD = SERVICE.shape_for("ProductionVariant").members["InferenceAmiVersion"]
# The families of botocore's description that have NVIDIA GPUs. The others are CPUs, Inferentia, Trainium and Gaudi.
GPU_FAMILIES = "g4dn g5 g6 g6e g7 g7e p2 p3 p4d p4de p5 p5e p5en p6-b200 p6-b300 p6e-gb200"
# The oldest driver for CUDA 13, with which libtorch's CUDA libraries are built.
OLDEST_DRIVER = 580


def variant(capsys, *options):
    """Returns the production variant in the output of a dry run of `deploy`."""
    calls = dict(dry(capsys, *DEPLOY, *options))
    (only,) = calls["sagemaker.create_endpoint_config"]["ProductionVariants"]
    return only


def test_default_ami_is_in_the_enum_of_botocore():
    assert arguments.GPU_AMI in FIELD.enum


def test_default_ami_has_a_driver_for_cuda_13():
    described = dict(re.findall(r"<dt>(.*?)</dt> <dd>(.*?)</dd>", FIELD.documentation))
    (driver,) = re.findall(r"NVIDIA driver version: (\d+)", described[arguments.GPU_AMI])
    assert int(driver) >= OLDEST_DRIVER


def test_default_ami_is_for_all_gpu_families_and_no_others():
    types = SERVICE.shape_for("ProductionVariant").members["InstanceType"].enum
    families = {each.split(".")[1] for each in types if arguments.default_ami(each)}
    assert families == set(GPU_FAMILIES.split())
    assert {arguments.default_ami(each) for each in types} == {arguments.GPU_AMI, ""}


def test_gpu_instance_gets_the_default_ami(capsys):
    assert variant(capsys)["InferenceAmiVersion"] == arguments.GPU_AMI
    assert variant(capsys, "--instance-type", "ml.p4d.24xlarge")["InferenceAmiVersion"] == arguments.GPU_AMI


@pytest.mark.parametrize("instance_type", ["ml.c7i.4xlarge", "ml.m5.xlarge", "ml.inf2.xlarge"])
def test_instance_without_gpu_gets_no_ami(capsys, instance_type):
    assert "InferenceAmiVersion" not in variant(capsys, "--instance-type", instance_type)


@pytest.mark.parametrize("instance_type", ["ml.g5.xlarge", "ml.inf2.xlarge"])
def test_ami_option_overrides_the_default(capsys, instance_type):
    for ami in FIELD.enum:
        chosen = variant(capsys, "--instance-type", instance_type, "--ami", ami)
        assert chosen["InferenceAmiVersion"] == ami


def test_empty_ami_option_leaves_the_field_out(capsys):
    assert "InferenceAmiVersion" not in variant(capsys, "--ami", "")
