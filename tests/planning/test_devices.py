"""Devices and their notation."""

import pytest

from estep.errors import ConfigError
from estep.planning.devices import GPUS, UNNAMED, cluster_devices, local_devices, parse_devices


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "gigabytes", "teraflops"),
    [
        ("80GB", 1, 1, 80, 312),
        ("4x80GB", 1, 4, 80, 312),  # a bare size counts as fast as an A100
        ("2xH100", 1, 2, 80, 989),
        ("8xa100-40gb", 1, 8, 40, 312),
        ("2x8x80GB", 2, 8, 80, 312),
        ("2 x 8 x H200", 2, 8, 141, 989),
        ("1xH100-94GB", 1, 1, 94, 989),
    ],
)
def test_the_notation_is_machines_then_devices_then_kind(
    text: str, nodes: int, per_node: int, gigabytes: float, teraflops: float
) -> None:
    devices = parse_devices(text)
    assert (devices.nodes, devices.per_node, devices.count) == (nodes, per_node, nodes * per_node)
    assert (devices.device.memory, devices.device.flops) == (gigabytes * 1e9, teraflops * 1e12)
    assert devices.device.gpu


@pytest.mark.parametrize("text", ["", "4", "0x80GB", "4x", "80", "2x2x2x80GB", "-1xH100"])
def test_what_is_no_notation_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ConfigError, match="expected COUNTxKIND or NODESxCOUNTxKIND, such as 4x80GB"):
        parse_devices(text)


def test_an_unknown_card_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown device 'h1000'; known are B200, H200"):
        parse_devices("2xH1000")


def test_the_rates_are_those_of_the_data_sheets() -> None:
    # NVIDIA's H100 data sheet: 1,979 TFLOPS of bfloat16 "with sparsity", half of it dense; 3.35 TB/s.
    assert GPUS["H100"].flops == pytest.approx(1979e12 / 2, rel=1e-3)
    assert GPUS["H100"].bandwidth == 3.35e12
    # A100 80 GB: 312 TFLOPS, 2,039 GB/s.
    assert (UNNAMED.flops, UNNAMED.bandwidth) == (312e12, 2039e9)


@pytest.mark.parametrize(
    ("reported", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A10", "A10"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("Another GPU", "A100"),
    ],
)
def test_a_card_is_known_by_what_its_driver_reports(monkeypatch: pytest.MonkeyPatch, reported: str, card: str) -> None:
    import torch

    sizes = [85e9, 84e9]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: reported)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: type("", (), {"total_memory": sizes[device.index]})
    )
    devices = local_devices()
    assert (devices.count, devices.device.name, devices.device.memory) == (2, reported, 84e9)
    assert devices.device.flops == GPUS[card].flops
    assert devices.host is not None
    assert not devices.unequal
    sizes[1] = 24e9
    assert local_devices().unequal


def test_a_machine_without_gpus_is_its_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    devices = local_devices()
    assert not devices.device.gpu
    assert devices.count == 1
    assert devices.device.memory == devices.host


def test_the_gpus_of_a_cluster_count_as_the_smallest_of_them() -> None:
    found = cluster_devices([("H200", 8), ("NVIDIA A100-SXM4-40GB", 4)])
    assert found is not None
    assert (found.device, found.nodes, found.per_node) == (GPUS["A100-40GB"], 2, 8)
    assert cluster_devices([("H100", 8), ("V100", 8)]) is None
    assert cluster_devices([]) is None
