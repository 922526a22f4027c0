"""Where a run's time goes, how fast it is, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import torch

PARTS = ("draw", "score", "select", "update")
Timer = Callable[[str], AbstractContextManager[None]]

# Dense peak of matrix products in FLOP/s, bfloat16, from the makers' data sheets.
PEAKS = {
    "H200": 989e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10G": 70e12,
    "V100": 125e12,
    "T4": 65e12,
}
PASSED = (
    "THE LEARNER HAS PASSED ITS REFERENCE (the learnability of the pairs that count stays below "
    "zero): from now on selection works against pairs that the reference knows well"
)


def no_timer(part: str) -> AbstractContextManager[None]:
    """Measures nothing."""
    return nullcontext()


class Stopwatch:
    """Seconds by part of a step; a part inside another is taken out of it.

    On a CPU they are the processor's, so that other jobs on it do not count. On a GPU they are the
    wall clock's, with the queue of kernels drained at both ends."""

    def __init__(self, device: torch.device, seconds: dict[str, float] | None = None):
        self.device = device
        self.seconds = dict.fromkeys(PARTS, 0.0) | (seconds or {})
        self._inner = [0.0]

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = self._now()
        # A stack: selecting is timed inside scoring and must not count twice.
        self._inner.append(0.0)
        try:
            yield
        finally:
            spent = self._now() - start
            self.seconds[part] += spent - self._inner.pop()
            self._inner[-1] += spent

    def _now(self) -> float:
        if self.device.type == "cuda":
            # Kernels run behind the program: unsynced, their time falls on whatever waits next.
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()


class Speed:
    """Examples a second, shares, MFU and time left, since this object was made or last asked."""

    def __init__(
        self,
        watch: Stopwatch,
        step: int,
        steps: int,
        batch: int,
        peak: float,
        evaluate_at: Collection[int] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.watch, self.steps, self.batch, self.peak = watch, steps, batch, peak
        self.evaluate_at, self.clock = evaluate_at, clock
        self.evaluating, self.evaluated, self.warming = 0.0, 0, True
        self.first, self.started = step, clock()
        self.before = step, self.started, dict(watch.seconds), 0.0

    def __call__(self, step: int, flops: float, waited: float = 0.0) -> dict[str, Any]:
        """After `step` steps, `flops` being what a step executes and `waited` seconds for data."""
        now, seconds = self.clock(), dict(self.watch.seconds)
        last, then, before, waited_before = self.before
        # Since the last line and not since the start: a change of speed shows at once.
        self.before = step, now, seconds, waited
        spent = {part: seconds[part] - before[part] for part in PARTS}
        total, done, wall = sum(spent.values()) or 1e-9, step - last, max(now - then, 1e-9)
        return {
            "examples_per_second": done * self.batch / wall,
            "shares": {part: spent[part] / total for part in PARTS},
            "waiting_for_data": min(1.0, (waited - waited_before) / wall),
            "mfu": flops * done / total / self.peak,
            "seconds_left": self.left(step),
        }

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation: these come more densely at the start of a run than later."""
        start = self.clock()
        yield
        self.evaluating += self.clock() - start
        self.evaluated += 1

    def left(self, step: int) -> float:
        """Seconds from the end of `step` on: steps, and evaluations that are still to come."""
        first, now = self.first, self.clock()
        spent = now - self.started - self.evaluating
        if self.warming and step > first:  # it may have compiled and filled caches: not once more
            self.first, self.started, self.warming = step, now, False
        coming = sum(at > step for at in self.evaluate_at)
        evaluations = coming * self.evaluating / max(self.evaluated, 1)
        return (self.steps - step) * max(0.0, spent) / max(step - first, 1) + evaluations


@lru_cache(maxsize=1)
def peak_flops(device: torch.device) -> float:
    """FLOP/s of large matrix products on this device: the maker's for a known GPU, else measured.

    On a CPU it is what one float32 product reaches with this process's threads, by its own clock.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        # The makers' number, not a measured one: an MFU is comparable with others' then.
        for word, peak in PEAKS.items():
            if word in name:
                return peak
    n = 8192 if device.type == "cuda" else 512
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    x = torch.ones(n, n, device=device, dtype=dtype)
    best = float("inf")
    # The best of four: the first pays for warming up, others for what else runs.
    for _ in range(4):
        watch = Stopwatch(device)
        with watch("update"):
            x @ x
        best = min(best, watch.seconds["update"])
    return 2 * n**3 / max(best, 1e-9)


def log_line(record: dict[str, Any]) -> str:
    """A record of the training log in one line."""
    parts = [f"loss {record['loss']:.3f}"]
    speed = record.get("speed")
    if speed:
        words = zip(("data", "score", "select", "train"), PARTS, strict=True)
        shares = (f"{word} {100 * speed['shares'][part]:.0f}" for word, part in words)
        parts.append(f"{speed['examples_per_second']:,.0f} examples/s")
        parts.append(f"time % {' '.join(shares)}")
        if speed["waiting_for_data"] > 0.05:
            parts.append(f"WAITS FOR DATA {100 * speed['waiting_for_data']:.0f} % of the time")
    whole, chosen = record["learnability"]
    if whole is not None:
        parts.append(f"learnability {whole:.3f} to {chosen:.3f}")
    if record.get("wrong"):
        every, picked = (100 * share for share in record["wrong"])
        parts.append(f"wrong captions {every:.0f} % to {picked:.0f} %")
    if record.get("passed_reference"):
        parts.append(PASSED)
    if speed:
        parts.append(f"MFU {100 * speed['mfu']:.0f} %")
    cost, kinds = record["flops"], ("cached_reuse", "cached", "uncached", "charged")
    named = (f"{cost[k] / 1e12:.3g} {k.replace('_', ' ')}" for k in kinds if k in cost)
    parts.append("TFLOP " + ", ".join(named))
    return "; ".join(parts)
