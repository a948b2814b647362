"""Child process: both forward passes of learnability by torch alone, of images that lie on the GPU already."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.engine import random_images
from benchmarks.processes import requests, say
from preceptor_service.models import ArchitectureRegistry


def main(spec: dict[str, Any], micro_batch_rows: int) -> None:
    """Answers each `{"seconds": s, "rows": B}` with the candidates that it computed losses of per second."""
    registry, config = ArchitectureRegistry(), spec["model_config"]
    models = [registry.build(spec["model"], config, seed).cuda().eval() for seed in (0, 1)]
    say(device=torch.cuda.get_device_name())
    for request in requests():
        columns = random_images(request["rows"], config).columns
        images, labels = (torch.from_numpy(columns[name]).cuda() for name in ("image", "label"))
        parts = [
            (images[at : at + micro_batch_rows], labels[at : at + micro_batch_rows])
            for at in range(0, len(labels), micro_batch_rows)
        ]
        started, candidates = time.perf_counter(), 0
        with torch.inference_mode():
            while time.perf_counter() - started < request["seconds"]:
                for image, label in parts:
                    for model in models:
                        cross_entropy(model(image), label, reduction="none")
                torch.cuda.synchronize()
                candidates += len(labels)
        say(rate=candidates / (time.perf_counter() - started))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]), int(sys.argv[2]))
