"""The demo: the same learner trained on noisy images, once selected uniformly and once by learnability.

    python -m examples.demo --data digits

`comparison` tells the story; `data`, `training`, `progress`, `table` and `picture` each do one part of it.
"""
