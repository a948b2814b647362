"""Trains a small CNN on the handwritten digits that the service at localhost:7600 (`preceptor serve`) selects."""

import os
import uuid

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from preceptor import RunSpec, SelectionClient
from preceptor.torch import SelectingLoader
from preceptor_service.models import ArchitectureRegistry

target, run_id = os.environ.get("PRECEPTOR_TARGET", "localhost:7600"), f"quickstart-{uuid.uuid4().hex[:8]}"
config = {"in_channels": 1, "image_size": 8, "num_classes": 10, "width": 16}
learner = ArchitectureRegistry().build("small_cnn", config)
optimiser = torch.optim.AdamW(learner.parameters(), lr=3e-3)
digits = load_digits()
images, labels = torch.tensor(digits.images * (255 / 16)).byte().unsqueeze(1), torch.tensor(digits.target)
super_batches = DataLoader(TensorDataset(images, labels), batch_size=256, shuffle=True)

# [quickstart]
with SelectionClient(target) as client:
    # "hard_learner" needs no reference model; the default, "learnability", also wants run.push_reference(state_dict).
    run = client.create_run(RunSpec(run_id, model="small_cnn", model_config=config, score="hard_learner"))
    batches = SelectingLoader(super_batches, run, sub_batch_size=64)
    for _epoch in range(20):
        run.push_weights(learner.state_dict(), step=batches.step)
        for image, label in batches:
            optimiser.zero_grad()
            cross_entropy(learner(image), label).backward()
            optimiser.step()
# [/quickstart]

print(f"accuracy {(learner(images).argmax(1) == labels).float().mean():.1%}")
