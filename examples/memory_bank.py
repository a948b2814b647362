"""Scores ahead of training: a thread offers candidates to a memory bank, and the loop trains on what it samples there.

Needs the service at localhost:7600 (`preceptor serve`); `PRECEPTOR_TARGET` names another.
"""

import os
import uuid
from threading import Semaphore, Thread

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

from preceptor import MemoryBank, Run, RunSpec, SelectionClient
from preceptor_service.models import ArchitectureRegistry

target, run_id = os.environ.get("PRECEPTOR_TARGET", "localhost:7600"), f"ahead-{uuid.uuid4().hex[:8]}"
config = {"in_channels": 1, "image_size": 8, "num_classes": 10, "width": 16}
digits = load_digits()
images, labels = torch.tensor(digits.images * (255 / 16)).byte().unsqueeze(1), torch.tensor(digits.target)
UPDATES = 300


def update(model: torch.nn.Module, optimiser: torch.optim.Optimizer, image: torch.Tensor, label: torch.Tensor) -> None:
    """One step of training."""
    optimiser.zero_grad()
    torch.autograd.backward(cross_entropy(model(image), label))
    optimiser.step()


learner, reference = (ArchitectureRegistry().build("small_cnn", config) for _ in range(2))
optimiser, reference_optimiser = (torch.optim.AdamW(model.parameters(), lr=3e-3) for model in (learner, reference))
for _ in range(100):
    update(reference, reference_optimiser, images[:300], labels[:300])


# [memory-bank]
def offer(run: Run, ahead: Semaphore) -> None:
    """Has one super-batch after the other scored, as far ahead of the training as `ahead` lets it."""
    for step in range(UPDATES):
        ahead.acquire()
        ids = torch.randperm(len(images))[:192]
        run.remember({"image": images[ids], "label": labels[ids]}, example_id=ids, step=step)


with SelectionClient(target) as client:
    run = client.create_run(RunSpec(run_id, model="small_cnn", model_config=config, memory_bank=MemoryBank(768)))
    run.push_reference(reference.state_dict())
    run.push_weights(learner.state_dict(), step=0)
    ahead = Semaphore(4)
    scoring = Thread(target=offer, args=(run, ahead), daemon=True)
    scoring.start()
    for step in range(UPDATES):
        chosen = run.sample(64, step=step, wait_s=30.0).example_id  # ids alone: the data are here
        ahead.release()
        update(learner, optimiser, images[chosen], labels[chosen])
        if step % 20 == 19:
            run.push_weights(learner.state_dict(), step=step)
    scoring.join()
# [/memory-bank]

print(f"accuracy {(learner(images).argmax(1) == labels).float().mean():.1%}")
