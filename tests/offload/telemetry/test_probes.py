"""Probes against files as kernels write them, and against a driver that fails in the ways drivers do.

The driver is the one thing faked: a stand-in for the NVML binding that raises the binding's own exceptions.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from offload.telemetry.probes import DeviceReading, HostProbe, NvmlProbe, ProcessProbe

MIB = 1 << 20
GIB = 1 << 30


def test_this_process_is_resident_and_has_a_peak():
    reading = ProcessProbe().read()
    assert reading.reason == ""
    assert 0 < reading.anonymous_bytes <= reading.rss_bytes <= reading.peak_bytes


def test_the_peak_follows_what_was_touched():
    before = ProcessProbe().read()
    touched = b"\1" * (before.peak_bytes - before.rss_bytes + 64 * MIB)
    assert ProcessProbe().read().peak_bytes >= before.peak_bytes + 32 * MIB
    del touched


def test_without_proc_psutil_answers(tmp_path):
    reading = ProcessProbe(tmp_path / "status").read()
    assert reading.rss_bytes > 0
    assert reading.peak_bytes > 0
    assert reading.anonymous_bytes is None
    assert reading.reason


def test_this_machine_has_memory():
    reading = HostProbe().read()
    assert 0 < reading.available_bytes <= reading.total_bytes
    assert reading.usable_bytes <= reading.total_bytes


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_v2_limit_counts_what_can_be_reclaimed(tmp_path):
    write(tmp_path / "groups", "0::/user/app\n")
    write(tmp_path / "fs/user/app/memory.max", f"{64 * MIB}\n")
    write(tmp_path / "fs/user/app/memory.current", f"{48 * MIB}\n")
    write(tmp_path / "fs/user/app/memory.stat", f"anon 1\ninactive_file {16 * MIB}\n")
    write(tmp_path / "fs/user/memory.max", "max\n")
    reading = HostProbe(tmp_path / "groups", tmp_path / "fs").read()
    assert reading.limit_bytes == reading.usable_bytes == 64 * MIB
    assert reading.limit_source == str(tmp_path / "fs/user/app/memory.max")
    assert reading.available_bytes == 32 * MIB


def test_the_tightest_limit_of_all_parents_holds(tmp_path):
    write(tmp_path / "groups", "0::/outer/inner\n")
    write(tmp_path / "fs/outer/inner/memory.max", f"{128 * MIB}\n")
    write(tmp_path / "fs/outer/memory.max", f"{64 * MIB}\n")
    assert HostProbe(tmp_path / "groups", tmp_path / "fs").read().limit_bytes == 64 * MIB


def test_a_container_sees_its_v1_limit_at_the_root(tmp_path):
    write(tmp_path / "groups", "5:cpu,cpuacct:/x\n4:memory:/docker/0123\n0::/\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", f"{32 * MIB}\n")
    write(tmp_path / "fs/memory/memory.usage_in_bytes", f"{40 * MIB}\n")
    reading = HostProbe(tmp_path / "groups", tmp_path / "fs").read()
    assert reading.limit_bytes == 32 * MIB
    assert reading.available_bytes == 0


@pytest.mark.parametrize("limit", ["9223372036854771712", "max", "", "many"])
def test_no_limit_is_no_limit(tmp_path, limit):
    write(tmp_path / "groups", "4:memory:/\n0::/\n")
    write(tmp_path / "fs/memory/memory.limit_in_bytes", limit)
    write(tmp_path / "fs/memory.max", limit)
    reading = HostProbe(tmp_path / "groups", tmp_path / "fs").read()
    assert reading.limit_bytes is None
    assert reading.available_bytes > 0


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert HostProbe(tmp_path / "groups", tmp_path / "fs").read().limit_bytes is None


class Driver:
    """A driver that works, but for the questions that ``failing`` names with the exception they raise."""

    def __init__(self, **failing: int) -> None:
        self.failing = failing
        self.starts = 0

    def __getattr__(self, name: str) -> object:
        if name.startswith("NVML"):
            return getattr(pynvml, name)
        raise AttributeError(name)

    def _ask(self, name: str) -> None:
        if name in self.failing:
            raise pynvml.NVMLError(self.failing[name])

    def nvmlInit(self) -> None:
        self.starts += 1
        self._ask("init")

    def nvmlSystemGetDriverVersion(self) -> bytes:
        self._ask("driver")
        return b"535.54"

    def nvmlDeviceGetCount(self) -> int:
        self._ask("count")
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        self._ask("handle")
        if index:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return "handle"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-1":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return "handle"

    def nvmlDeviceGetName(self, handle: str) -> str:
        self._ask("name")
        return "NVIDIA Test"

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        self._ask("energy")
        return 12_345

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        self._ask("memory")
        return SimpleNamespace(total=24 * GIB, used=6 * GIB, free=18 * GIB)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[SimpleNamespace]:
        self._ask("processes")
        return [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=2 * GIB),
            SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=4 * GIB),
        ]


def test_a_gpu_that_says_everything():
    assert NvmlProbe(nvml=Driver()).read() == DeviceReading(
        name="NVIDIA Test",
        driver="535.54",
        total_bytes=24 * GIB,
        used_bytes=6 * GIB,
        free_bytes=18 * GIB,
        process_bytes=2 * GIB,
    )
    assert NvmlProbe("GPU-1", Driver()).read().name == "NVIDIA Test"
    assert NvmlProbe(nvml=Driver()).count() == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, "no NVIDIA driver is installed"),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, "the NVIDIA driver is not loaded"),
        (pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH, "the NVIDIA driver was updated; restart the machine"),
        (pynvml.NVML_ERROR_NO_PERMISSION, "start: not permitted"),
        (pynvml.NVML_ERROR_UNKNOWN, "start: Unknown Error"),
    ],
)
def test_no_driver_to_talk_to(error, reason):
    probe = NvmlProbe(nvml=Driver(init=error))
    assert probe.read() == DeviceReading(reason=reason)
    assert probe.count() == 0


def test_this_machine_has_a_gpu_or_a_reason():
    reading = NvmlProbe().read()
    assert reading.name or reading.reason
    assert NvmlProbe().count() >= (reading.name is not None)


def test_an_old_driver_leaves_out_what_it_has_no_function_for():
    reading = NvmlProbe(nvml=Driver(processes=pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)).read()
    assert reading.process_bytes is None
    assert reading.used_bytes == 6 * GIB
    assert reading.reason == "memory by process: this driver is too old to say"


def test_an_old_binding_leaves_out_what_it_has_no_name_for():
    driver = Driver()
    old = SimpleNamespace(
        NVMLError=pynvml.NVMLError,
        nvmlInit=driver.nvmlInit,
        nvmlSystemGetDriverVersion=driver.nvmlSystemGetDriverVersion,
        nvmlDeviceGetHandleByIndex=driver.nvmlDeviceGetHandleByIndex,
        nvmlDeviceGetName=driver.nvmlDeviceGetName,
        nvmlDeviceGetMemoryInfo=driver.nvmlDeviceGetMemoryInfo,
    )
    reading = NvmlProbe(nvml=old).read()
    assert reading.used_bytes == 6 * GIB
    assert reading.process_bytes is None
    assert "nvmlDeviceGetComputeRunningProcesses" in reading.reason


def test_unsupported_fields_are_none_each_with_its_reason():
    unsupported = pynvml.NVML_ERROR_NOT_SUPPORTED
    reading = NvmlProbe(nvml=Driver(memory=unsupported, processes=unsupported)).read()
    assert reading.name == "NVIDIA Test"
    assert (reading.total_bytes, reading.used_bytes, reading.free_bytes) == (None, None, None)
    assert reading.reason == "memory: this GPU does not say; memory by process: this GPU does not say"


def test_a_driver_that_does_not_list_this_process(monkeypatch):
    driver = Driver()
    monkeypatch.setattr(
        driver,
        "nvmlDeviceGetComputeRunningProcesses",
        lambda handle: [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)],
        raising=False,
    )
    reading = NvmlProbe(nvml=driver).read()
    assert reading.process_bytes is None
    assert "does not list this process" in reading.reason


@pytest.mark.parametrize("device", [7, "GPU-other"])
def test_a_gpu_that_is_not_there(device):
    reading = NvmlProbe(device, Driver()).read()
    assert reading.name is None
    assert reading.driver == "535.54"
    assert reading.reason == f"GPU {device}: there is no such GPU"


def test_a_lost_gpu_is_found_again_when_it_comes_back():
    driver = Driver()
    probe = NvmlProbe(nvml=driver)
    assert probe.read().used_bytes == 6 * GIB
    lost = pynvml.NVML_ERROR_GPU_IS_LOST
    driver.failing = {"handle": lost, "name": lost, "memory": lost, "processes": lost}
    reading = probe.read()
    assert reading.used_bytes is None
    assert reading.reason == "the GPU is lost: it fell off the bus or is in reset"
    driver.failing.pop("handle")
    assert probe.read().reason == reading.reason
    driver.failing = {}
    assert probe.read().used_bytes == 6 * GIB
    assert driver.starts == 3


def test_energy_is_in_joules():
    driver = Driver()
    probe = NvmlProbe("GPU-1", driver)
    assert (probe.energy_j(), probe.energy_j(), driver.starts) == (12.345, 12.345, 1)


@pytest.mark.parametrize(
    "failing",
    [
        {"init": pynvml.NVML_ERROR_DRIVER_NOT_LOADED},
        {"handle": pynvml.NVML_ERROR_GPU_IS_LOST},
        {"energy": pynvml.NVML_ERROR_NOT_SUPPORTED},
    ],
)
def test_without_a_meter_there_is_no_energy(failing):
    assert NvmlProbe(0, Driver(**failing)).energy_j() is None
