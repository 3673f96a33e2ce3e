"""Energy (being written)."""


class EnergyMeter:
    """Counts what this rank's GPU has drawn since it was made, by NVML's energy counter."""

    def kwh(self) -> float | None:
        """Returns kWh; None where it is not to be had."""
        return None
