"""What a profile of `conclave train --profile` tells of the device."""

import json
from pathlib import Path

DEVICE_CATEGORIES = {"kernel", "gpu_memcpy", "gpu_memset"}  # Kineto's


def idle_share(file: Path) -> float | None:
    """Of the time from the device's first work to the end of its last, the share in which no stream of it worked. None without work of a device."""
    events = [event for event in json.loads(file.read_text())["traceEvents"] if event.get("ph") == "X" and event.get("cat") in DEVICE_CATEGORIES]
    if not events:
        return None
    spans = sorted((event["ts"], event["ts"] + event["dur"]) for event in events)
    busy, worked_until = 0.0, spans[0][0]
    for begin, end in spans:
        busy += max(0.0, end - max(begin, worked_until))
        worked_until = max(worked_until, end)
    return 1 - busy / (worked_until - spans[0][0])
