"""The machine's state around a measurement: what it is, and how much of it other guests took."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from components.benchmark.measurements import Machine, MachineState


@dataclass(frozen=True)
class MachineWatch:
    """A mark in time; `finish` describes the machine between the mark and now."""

    load: float
    steal_s: float | None
    cpu_s: float

    @classmethod
    def start(cls) -> "MachineWatch":
        steal_s, cpu_s = _cpu_times()
        return cls(os.getloadavg()[0], steal_s, cpu_s)

    def finish(self) -> Machine:
        import psutil

        steal_s, cpu_s = _cpu_times()
        spent_s = cpu_s - self.cpu_s
        stolen_s = None if steal_s is None or self.steal_s is None else steal_s - self.steal_s
        return Machine(
            cpu=_cpu_name(),
            cores=len(os.sched_getaffinity(0)),
            memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
            load_before=round(self.load, 2),
            load_after=round(os.getloadavg()[0], 2),
            steal_share=None if stolen_s is None or spent_s <= 0 else round(stolen_s / spent_s, 4),
            frequency_mhz=_frequency_mhz(),
            system=f"{platform.system()} {platform.release()}",
        )


class MachineStates:
    """The machine's state again and again; each call tells what was stolen since the one before."""

    def __init__(self) -> None:
        self._steal_s, self._cpu_s = _cpu_times()

    def now(self) -> MachineState:
        steal_s, cpu_s = _cpu_times()
        stolen = None
        if steal_s is not None and self._steal_s is not None and cpu_s > self._cpu_s:
            stolen = round((steal_s - self._steal_s) / (cpu_s - self._cpu_s), 4)
        self._steal_s, self._cpu_s = steal_s, cpu_s
        return MachineState(
            load=round(os.getloadavg()[0], 2),
            steal_share=stolen,
            frequency_mhz=_frequency_mhz(),
            temperature_c=_temperature_c(),
        )


def _cpu_times() -> tuple[float | None, float]:
    """Seconds that other guests took from this machine (`None` where unknown), and of all CPU time."""
    import psutil

    times = psutil.cpu_times()
    return getattr(times, "steal", None), float(sum(times))


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _frequency_mhz() -> float | None:
    import psutil

    frequency = psutil.cpu_freq()
    return round(frequency.current, 1) if frequency and frequency.current else None


def _temperature_c() -> float | None:
    """The hottest of the machine's sensors; virtual machines have none."""
    import psutil

    sensors = getattr(psutil, "sensors_temperatures", dict)()
    degrees = [reading.current for readings in sensors.values() for reading in readings if reading.current]
    return round(max(degrees), 1) if degrees else None
